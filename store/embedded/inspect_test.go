package embedded

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"

	"rewindmq/store"
)

// files gives the contents of a data directory.
func files(t testing.TB, fs vfs.FS, dir string) map[string][]byte {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, name := range names {
		f, err := fs.Open(fs.PathJoin(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		out[name] = data
	}
	return out
}

// disk makes a file system of files.
func disk(t testing.TB, content map[string][]byte) vfs.FS {
	t.Helper()
	fs := vfs.NewMem()
	if err := fs.MkdirAll("data", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range content {
		f, err := fs.Create("data/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		// A copy: under the race detector MemFS spoils what it is given.
		if _, err := f.Write(slices.Clone(data)); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return fs
}

// killed gives the files of a log that was killed while it held messages in its
// log file, and that file's name.
func killed(t *testing.T, fill func(r *rig)) (map[string][]byte, string) {
	t.Helper()
	fs := vfs.NewCrashableMem()
	r := start(t, Options{FS: fs})
	fill(r)
	r.kill()
	content := files(t, fs.CrashClone(vfs.CrashCloneCfg{}), "data")
	var newest string
	for name := range content {
		if _, _, ok := wal.ParseLogFilename(name); ok && len(content[name]) > 0 {
			newest = max(newest, name)
		}
	}
	if newest == "" {
		t.Fatal("no log file")
	}
	return content, newest
}

func with(content map[string][]byte, name string, data []byte) map[string][]byte {
	out := map[string][]byte{}
	for k, v := range content {
		out[k] = v
	}
	out[name] = data
	return out
}

// A log file that ends anywhere in its last record: the record is cut, and
// reported, and all before it is there.
func TestTornTailIsCutAndReported(t *testing.T) {
	t.Parallel()
	content, name := killed(t, func(r *rig) {
		for i := range 20 {
			r.put("t", fmt.Sprint(i))
		}
	})
	f := chunkFile{data: content[name], number: logNumber(t, name)}
	e := f.walk()
	var last chunk
	for at := 0; at < e.at; {
		c, ok := f.chunk(at)
		if !ok {
			t.Fatalf("no chunk at %d of %d", at, e.at)
		}
		last, at = c, c.end
	}
	for cut := last.at; cut < last.end; cut++ {
		l, err := Open(Options{Dir: "data", FS: disk(t, with(content, name, content[name][:cut]))})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		got := l.Recovery()
		want := Recovery{}
		if cut > last.at {
			want = Recovery{TornFile: name, TornBytes: int64(cut - last.at)}
		}
		if got != want {
			t.Errorf("cut at %d, byte %d of the record: recovery %+v, want %+v", cut, cut-last.at, got, want)
		}
		if head := l.ring.head.Load(); head != 19 {
			t.Errorf("cut at %d: head %d, want 19", cut, head)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func logNumber(t *testing.T, name string) uint32 {
	t.Helper()
	n, _, ok := wal.ParseLogFilename(name)
	if !ok {
		t.Fatalf("%s is no log file", name)
	}
	return uint32(n)
}

// One damaged byte anywhere before the last record of a log file is reported,
// also within one block of 32 KiB, in a header, and in a log number.
func TestDamageInLogIsReported(t *testing.T) {
	t.Parallel()
	content, name := killed(t, func(r *rig) {
		for i := range 60 {
			r.put("t", fmt.Sprintf("%0200d", i))
		}
		r.put("t", strings.Repeat("x", 100_000))
		for i := range 10 {
			r.put("t", fmt.Sprint(i))
		}
	})
	f := chunkFile{data: content[name], number: logNumber(t, name)}
	e := f.walk()
	var last chunk
	for at := 0; at < e.at; {
		c, ok := f.chunk(at)
		if !ok {
			at++ // the rest of a block
			continue
		}
		last, at = c, c.end
	}
	step := 1
	if testing.Short() || raceEnabled {
		step = 97
	}
	missed := 0
	for at := 0; at < last.at; at += step {
		if step == 1 && at > 2000 && at%211 != 0 {
			continue
		}
		damaged := slices.Clone(content[name])
		damaged[at] ^= 0x40
		if at%3 == 0 {
			damaged[at] ^= 0x41
		}
		l, err := Open(Options{Dir: "data", FS: disk(t, with(content, name, damaged))})
		switch {
		case err == nil:
			// The zeroes at the end of a block are nobody's.
			if zero(content[name][at:at+1]) && l.ring.head.Load() == 71 {
				_ = l.Close()
				continue
			}
			missed++
			t.Errorf("byte %d of %d: opened, head %d of 71", at, last.at, l.ring.head.Load())
			_ = l.Close()
		case !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), name):
			t.Errorf("byte %d: %v", at, err)
		}
		if missed > 10 {
			t.FailNow()
		}
	}
}

// Damage in tables, blob files and the manifest is met at the start or by the
// first read, and never passed over.
func TestDamageInTablesIsReported(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	r := start(t, Options{FS: fs})
	for i := range 30 {
		r.fill(fmt.Sprintf("t/%d", i%3), 20, 20)
		r.fill("big", 5, 600)
	}
	want, _ := r.read(0, 1<<40, "#")
	if err := r.db.Flush(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	content := files(t, fs, "data")
	met := map[string]int{}
	for name, data := range content {
		kind := name[strings.LastIndexByte(name, '.')+1:]
		if strings.HasPrefix(name, "MANIFEST") {
			kind = "MANIFEST"
		}
		if kind != "sst" && kind != "blob" && kind != "MANIFEST" {
			continue
		}
		for at := 0; at < len(data); at += max(1, len(data)/150) {
			damaged := slices.Clone(data)
			damaged[at] ^= 0xff
			if wantDamage(t, fmt.Sprintf("%s byte %d of %d", name, at, len(data)), disk(t, with(content, name, damaged)), want) {
				met[kind]++
			}
		}
	}
	for _, kind := range []string{"sst", "blob", "MANIFEST"} {
		if met[kind] == 0 {
			t.Errorf("no damage in a %s file was met: %v", kind, met)
		}
	}
	t.Logf("damage met: %v", met)
}

// wantDamage opens and reads: an error that says what it is, or every message.
func wantDamage(t *testing.T, what string, fs vfs.FS, want []string) bool {
	t.Helper()
	l, err := Open(Options{Dir: "data", FS: fs})
	if err != nil {
		if !errors.Is(err, store.ErrCorrupt) && !errors.Is(err, store.ErrFormat) && !strings.Contains(err.Error(), "data") {
			t.Errorf("%s: open: %v", what, err)
		}
		return true
	}
	r := run(t, Options{}, l)
	got, _, err := r.tryRead(0, 1<<40, "#")
	switch {
	case err != nil && !errors.Is(err, store.ErrCorrupt):
		t.Errorf("%s: read: %v", what, err)
	case err == nil && !slices.Equal(got, want):
		t.Errorf("%s: %d messages without an error, want %d", what, len(got), len(want))
	}
	r.stop()
	return err != nil
}
