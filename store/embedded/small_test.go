package embedded

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/schema"
	"rewindmq/store"
)

// A real file system that fills up. REWINDMQ_TEST_SMALLFS names a directory on
// one of at most 256 MiB, for example a tmpfs.
func TestSmallFileSystem(t *testing.T) {
	root := os.Getenv("REWINDMQ_TEST_SMALLFS")
	if root == "" {
		t.Skip("REWINDMQ_TEST_SMALLFS is not set")
	}
	dir, err := os.MkdirTemp(root, "log") //nolint:usetesting // the file system is chosen by the variable
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ballast := filepath.Join(root, "ballast")
	free, _, err := diskUsage(vfs.Default)(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, make([]byte, free/3), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(ballast) }()
	r := start(t, Options{FS: vfs.Default, Dir: filepath.Join(dir, "data")})
	p := &store.Publisher{Owner: schema.Owner{SID: 1}}
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise) // nothing that can be compressed
	acked := 0
	payload := func() string { i := (acked * 7919) % (len(noise) - 2000); return string(noise[i : i+2000]) }
	full := func() bool {
		for range 200_000 {
			a := r.append(p, r.message("t", payload(), 1), r.message("t", payload(), 1), r.message("t", payload(), 1))
			for _, a := range a {
				switch {
				case a.Outcome == store.Stored:
					acked++
				case errors.Is(a.Err, store.ErrNoSpace):
					return true
				default:
					t.Fatalf("%+v after %d", a, acked)
				}
			}
		}
		return false
	}
	if !full() {
		t.Fatalf("never full: %d stored", acked)
	}
	left, total, _ := diskUsage(vfs.Default)(root)
	t.Logf("full after %d messages of 2 kB: %d of %d MiB free", acked, left>>20, total>>20)
	before := acked
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); r.Ready(context.Background()) != nil; {
		if time.Now().After(end) {
			t.Fatal("it does not go on when there is room")
		}
	}
	if !full() || acked < before+100 {
		t.Errorf("%d more stored when there was room", acked-before)
	}
	if got, _ := r.read(0, uint64(acked), "t"); len(got) != acked {
		t.Errorf("%d of %d messages", len(got), acked)
	}
	r = r.again()
	if n := r.headN(); n != uint64(acked) {
		t.Errorf("head %d, want %d", n, acked)
	}
}
