package mongod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNone: there is no mongod here.
var ErrNone = errors.New("mongod: no mongod (REWINDMQ_TEST_MONGOD, PATH, .cache/mongod)")

// Find gives the path of the binary to test with, or ErrNone.
func Find() (string, error) {
	if p := os.Getenv("REWINDMQ_TEST_MONGOD"); p != "" {
		if _, err := os.Stat(p); err != nil {
			return "", fmt.Errorf("mongod: REWINDMQ_TEST_MONGOD: %w", err)
		}
		return p, nil
	}
	if p, err := exec.LookPath("mongod"); err == nil {
		return p, nil
	}
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	p := filepath.Join(cache, "mongod")
	if _, err := os.Stat(p); err != nil {
		return "", ErrNone
	}
	return p, nil
}

// Cache gives the directory in which fetch keeps the binary: `.cache/mongod`
// beside the go.mod above the working directory.
func Cache() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("mongod: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".cache", "mongod"), nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", ErrNone
		}
		dir = up
	}
}

// TB is what Need takes of a *testing.T.
type TB interface {
	Helper()
	Skip(args ...any)
	Fatal(args ...any)
}

// Need gives the path of the binary; without one it skips the test, or fails it
// if REWINDMQ_TEST_REQUIRE_MONGO is 1.
func Need(t TB) string {
	t.Helper()
	p, err := Find()
	switch {
	case err == nil:
		return p
	case os.Getenv("REWINDMQ_TEST_REQUIRE_MONGO") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return ""
}
