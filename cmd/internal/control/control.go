// Package control is the private door of a running broker: commands on the same machine, such as `rewindmq backup`,
// call the broker that has the data directory open.
//
// Nouns: the door is an HTTP server on a free port of 127.0.0.1; its address and a random token stand in
// DATA/control.json, which only the owner of the directory can read, so whoever may read the data may use the door.
//
// Invariant: control.json is there while the door is open. After SIGKILL it stays behind; a caller then finds nobody at
// its address or a stranger who does not know the token, and the next broker sweeps it away, or puts its own in its place.
//
// Server.Run owns the goroutines that serve calls and returns when they have ended. Listen starts none.
package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// FileName is the name of the door's file in the data directory.
const FileName = "control.json"

var (
	// ErrNoBroker says that no broker has the data directory open.
	ErrNoBroker = errors.New("control: no broker runs on this data directory")
	// ErrRunning says that a broker has the data directory open.
	ErrRunning = errors.New("control: another broker runs on this data directory")
	// ErrTarget says that the target of a backup cannot be used: it exists, or lies in the data directory.
	ErrTarget = errors.New("control: backup target refused")
)

// door is the content of control.json.
type door struct {
	Addr  string `json:"addr"`
	Token string `json:"token"`
	PID   int    `json:"pid"`
}

type backupCall struct {
	Dir string `json:"dir"`
}

// Server answers calls at the door.
type Server struct {
	listener net.Listener
	http     *http.Server
	file     string
}

// Listen opens the door of a data directory, which must exist. backup copies the running log to a directory that does
// not exist; calls of it never overlap.
func Listen(dataDir string, backup func(ctx context.Context, dir string) error) (*Server, error) {
	data, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, fmt.Errorf("control: data directory %s: %w", dataDir, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("control: listen: %w", err)
	}
	d := door{Addr: l.Addr().String(), Token: rand.Text(), PID: os.Getpid()}
	s := &Server{listener: l, file: filepath.Join(data, FileName)}
	if err := d.save(s.file); err != nil {
		_ = l.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /backup", guarded(d.Token, backupCalls(data, backup)))
	mux.Handle("GET /alive", guarded(d.Token, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second}
	return s, nil
}

// save writes control.json for the eyes of its owner. It is so short that it is written at once; who reads it half
// written by ill luck finds no broker yet.
func (d door) save(path string) error {
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("control: encode %s: %w", FileName, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("control: replace %s: %w", path, err) // its mode may be another one
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("control: write %s: %w", path, err)
	}
	return nil
}

// load reads control.json. Without one, or with half of one, it returns ErrNoBroker.
func load(data string) (door, error) {
	var d door
	text, err := os.ReadFile(filepath.Join(data, FileName))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return d, fmt.Errorf("%w: %s has no %s", ErrNoBroker, data, FileName)
	case err != nil:
		return d, fmt.Errorf("control: read the door of %s: %w", data, err)
	}
	if err := json.Unmarshal(text, &d); err != nil || d.Addr == "" {
		return d, fmt.Errorf("%w: %s in %s is not complete", ErrNoBroker, FileName, data)
	}
	return d, nil
}

// Sweep looks for the broker of a data directory, which need not exist. One that answers is ErrRunning. The door that a
// killed one left is removed where it is certain that no broker is behind it, so that nobody calls there any more. Where
// it is not (the broker may be held up, another program may answer in its own way, the file may be another user's), the
// file stays: the store takes it for none of its concern, its lock finds out whether a broker runs, and if none does
// Listen replaces the file.
func Sweep(ctx context.Context, dataDir string) error {
	d, err := load(dataDir)
	if err == nil {
		alive, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err = d.call(alive, http.MethodGet, "/alive", nil)
		if err == nil {
			return fmt.Errorf("%w: process %d on %s", ErrRunning, d.PID, dataDir)
		}
	}
	if !errors.Is(err, ErrNoBroker) {
		return nil
	}
	if err := os.Remove(filepath.Join(dataDir, FileName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("control: remove the door of a broker that is gone: %w", err)
	}
	return nil
}

// Close closes the door when Run was never called. After Run it does nothing.
func (s *Server) Close() {
	_ = s.listener.Close()
	_ = os.Remove(s.file)
}

// Run answers calls until ctx ends, then cancels those under way, waits for them and removes control.json.
func (s *Server) Run(ctx context.Context) error {
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.http.BaseContext = func(net.Listener) context.Context { return calls }
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	defer s.Close()
	select {
	case err := <-served:
		return fmt.Errorf("control: serve: %w", err)
	case <-ctx.Done():
	}
	_ = os.Remove(s.file) // first, so that nobody new comes
	cancel()
	if err := s.http.Shutdown(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("control: stop: %w", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control: serve: %w", err)
	}
	return nil
}

// guarded lets only callers through who know the token.
func guarded(token string, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+token)) != 1 {
			http.Error(w, "wrong token", http.StatusUnauthorized)
			return
		}
		next(w, r)
	})
}

func backupCalls(data string, backup func(context.Context, string) error) http.HandlerFunc {
	busy := make(chan struct{}, 1)
	return func(w http.ResponseWriter, r *http.Request) {
		var call backupCall
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&call); err != nil {
			http.Error(w, "the call is not JSON: "+err.Error(), http.StatusBadRequest)
			return
		}
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			http.Error(w, "another backup is under way", http.StatusConflict)
			return
		}
		if err := checkTarget(call.Dir, data); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		if err := backup(r.Context(), call.Dir); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// checkTarget refuses a target that exists, is relative, or lies in the data directory, where the store would meet
// files that are not its own.
func checkTarget(dir, data string) error {
	switch rel, err := filepath.Rel(data, dir); {
	case !filepath.IsAbs(dir):
		return fmt.Errorf("%w: %s is not an absolute path", ErrTarget, dir)
	case err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)):
		return fmt.Errorf("%w: %s lies in the data directory %s", ErrTarget, dir, data)
	}
	switch _, err := os.Lstat(dir); {
	case err == nil:
		return fmt.Errorf("%w: %s exists already", ErrTarget, dir)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrTarget, err)
	}
	return nil
}

// Backup asks the broker that runs on dataDir to copy its log to the directory target, which must not exist. It
// returns when the copy is complete. Errors: ErrNoBroker, ErrTarget, or what the broker said.
func Backup(ctx context.Context, dataDir, target string) error {
	data, err := filepath.Abs(dataDir)
	if err != nil {
		return fmt.Errorf("control: data directory %s: %w", dataDir, err)
	}
	dir, err := filepath.Abs(target)
	if err != nil {
		return fmt.Errorf("control: backup target %s: %w", target, err)
	}
	if err := checkTarget(dir, data); err != nil {
		return err
	}
	d, err := load(data)
	if err != nil {
		return err
	}
	body, err := json.Marshal(backupCall{Dir: dir})
	if err != nil {
		return fmt.Errorf("control: encode the call: %w", err)
	}
	if err := d.call(ctx, http.MethodPost, "/backup", body); err != nil {
		return fmt.Errorf("control: backup to %s: %w", dir, err)
	}
	return nil
}

// call makes one call at the door. Errors: ErrNoBroker when certainly no broker is behind it, or what it said.
func (d door) call(ctx context.Context, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+d.Addr+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("call %s: %w", d.Addr, err)
	}
	req.Header.Set("Authorization", "Bearer "+d.Token)
	transport := &http.Transport{DisableKeepAlives: true} // no proxy: the door is on this machine
	resp, err := (&http.Client{Transport: transport}).Do(req)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" && ctx.Err() == nil {
		return fmt.Errorf("%w: nobody answers at %s, process %d is gone", ErrNoBroker, d.Addr, d.PID)
	} else if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	switch {
	case resp.StatusCode == http.StatusNoContent:
		return nil
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: another program answers at %s", ErrNoBroker, d.Addr)
	case err != nil:
		return err
	default:
		return errors.New(strings.TrimSpace(string(said)))
	}
}
