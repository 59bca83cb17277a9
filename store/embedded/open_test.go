package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rewindmq/schema"
	"rewindmq/store"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{}, {Dir: "x", Reserve: -1}} {
		if _, err := Open(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// A log of a newer format is refused, with a text that tells what to do.
func TestNewerFormatIsRefused(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	r.put("t", "x")
	r.inside(func(c *committer) error {
		c.set([]byte{keyFormat}, appendU32(nil, formatVersion+1))
		return nil
	})
	r.stop()
	_, err := Open(r.o)
	if !errors.Is(err, store.ErrFormat) || !strings.Contains(err.Error(), "newer rewindmq") || !strings.Contains(err.Error(), "data") {
		t.Errorf("Open: %v", err)
	}
	if _, err := Open(r.o); !errors.Is(err, store.ErrFormat) {
		t.Errorf("the second time: %v", err) // the first let go of everything
	}
}

// A directory that is somebody else's is refused, and left as it is.
func TestForeignDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Dir: dir})
	if !errors.Is(err, store.ErrFormat) || !strings.Contains(err.Error(), "thesis.txt") || !strings.Contains(err.Error(), dir) {
		t.Errorf("Open: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}

	mem := vfs.NewMem()
	db, err := pebble.Open("data", &pebble.Options{FS: mem})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Set([]byte("some"), []byte("thing"), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: "data", FS: mem}); !errors.Is(err, store.ErrFormat) {
		t.Errorf("another Pebble database: %v", err)
	}
}

// The door that a killed process left in the directory says nothing: the lock
// decides.
func TestDoorIsNotForeign(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "control.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{FS: vfs.Default, Dir: dir}
	start(t, o).put("t", "x")
	if _, err := Open(o); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second Open: %v", err)
	}
}

// The line about the free space names the directory once: as JSON a key that is
// there twice is no proper object.
func TestFreeSpaceIsLoggedOnce(t *testing.T) {
	t.Parallel()
	core, lines := observer.New(zap.InfoLevel)
	start(t, Options{Log: zap.New(core), FreeSpace: func(string) (uint64, uint64, error) { return 1 << 20, 1 << 30, nil }})
	got := lines.FilterMessage("free space").All()
	if len(got) != 1 {
		t.Fatalf("%d lines", len(got))
	}
	keys := map[string]int{}
	for _, f := range got[0].Context {
		keys[f.Key]++
	}
	if keys["dir"] != 1 || keys["free_bytes"] != 1 {
		t.Errorf("keys: %v", keys)
	}
}

// Two logs cannot have one directory.
func TestLocked(t *testing.T) {
	t.Parallel()
	for _, fs := range []vfs.FS{vfs.NewMem(), vfs.Default} {
		dir := filepath.Join(t.TempDir(), "data")
		o := Options{FS: fs, Dir: dir}
		r := start(t, o)
		_, err := Open(o)
		if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), dir) {
			t.Errorf("a second Open: %v", err)
		}
		r.put("t", "x") // the first is not disturbed
		r.stop()
		start(t, o).put("t", "y")
	}
}

// A directory that cannot be written is said to be so.
func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	for _, no := range []error{syscall.EROFS, syscall.EACCES} {
		mem := vfs.NewMem()
		if err := mem.MkdirAll("data", 0o755); err != nil {
			t.Fatal(err)
		}
		ro := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				return &fs.PathError{Op: "open", Path: op.Path, Err: no}
			}
			return nil
		}))
		_, err := Open(Options{Dir: "data", FS: ro})
		if !errors.Is(err, no) || !strings.Contains(err.Error(), "data directory data cannot be written") {
			t.Errorf("%v: %v", no, err)
		}
	}
}

// On the file system of the machine, with its memtables small as on a small disk:
// what was stored is there after a start.
func TestOnDisk(t *testing.T) {
	t.Parallel()
	small := func(string) (uint64, uint64, error) { return 1 << 30, 64 << 20, nil }
	r := start(t, Options{FS: vfs.Default, Dir: filepath.Join(t.TempDir(), "a", "b"), FreeSpace: small})
	r.fill("t", 3000, 1000)
	want, _ := r.read(0, 3000, "t")
	r = r.again()
	if got, _ := r.read(0, 3000, "t"); !slices.Equal(got, want) || len(got) != 3000 {
		t.Errorf("%d messages after a start, want %d", len(got), len(want))
	}
}

// A copy of the running log is a log that holds at least all that was
// acknowledged before.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, Options{FS: vfs.Default, Dir: filepath.Join(dir, "data")})
	r.fill("t", 500, 300)
	o := r.claim(store.Claim{ClientID: "c", Expiry: 1000}).Owner
	r.deliver(o, 1, 5, 1, 1)
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		p := &store.Publisher{Owner: schema.Owner{SID: 1}}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				r.append(p, r.message("load", fmt.Sprint(i), 1))
			}
		}
	})
	for i := range 3 {
		acked := r.headN()
		target := filepath.Join(dir, fmt.Sprintf("copy-%d", i))
		if err := r.Checkpoint(target); err != nil {
			t.Fatal(err)
		}
		if err := r.Checkpoint(target); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a second checkpoint to it: %v", err)
		}
		c := start(t, Options{FS: vfs.Default, Dir: target})
		if c.headN() < acked {
			t.Errorf("the copy ends at %d, acknowledged were %d", c.headN(), acked)
		}
		if got, _ := c.read(0, acked, "#"); uint64(len(got)) != acked {
			t.Errorf("%d of %d messages", len(got), acked)
		}
		if got := c.claim(store.Claim{ClientID: "c", Expiry: 1000}); len(got.Cursor.Flight) != 1 {
			t.Errorf("recovered %+v", got.Cursor)
		}
		c.put("t", "goes on")
		c.stop()
	}
	close(stop)
	load.Wait()
	r.stop()
	if err := r.Checkpoint(filepath.Join(dir, "late")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// Ready tells people what is wrong.
func TestReady(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	if err := r.Ready(context.Background()); err != nil {
		t.Error(err)
	}
	r.stop()
	if err := r.Ready(context.Background()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// A clock that was never set (1970) and then is: noticed, nothing dropped.
func TestClockFrom1970(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	right := clock.Now()
	clock.add(time.Unix(100, 0).Sub(right))
	r := start(t, Options{Now: clock.Now})
	r.put("t", "a")
	clock.add(right.Sub(clock.Now()))
	r.housekeep()
	if err := r.Ready(context.Background()); err == nil {
		t.Error("56 years are not noticed")
	}
	if got, _ := r.read(0, 9, "t"); len(got) != 1 {
		t.Errorf("read %q", got)
	}
}
