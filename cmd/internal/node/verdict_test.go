package node

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
)

// mongodOf gives the path of mongod. Without one the test is skipped, or fails if REWINDMQ_TEST_REQUIRE_MONGO is 1.
func mongodOf(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("REWINDMQ_TEST_MONGOD"), "mongod", filepath.Join("..", "..", "..", ".cache", "mongod", "mongod")} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("REWINDMQ_TEST_REQUIRE_MONGO") == "1" {
		t.Fatal("there is no mongod")
	}
	t.Skip("there is no mongod")
	return ""
}

// serverOf starts a mongod that is no replica set yet, and returns its address when it listens.
func serverOf(t *testing.T, args ...string) string {
	t.Helper()
	binary := mongodOf(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	_ = free.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, binary, append([]string{
		"--bind_ip", "127.0.0.1", "--port", port, "--dbpath", t.TempDir(), "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "16",
	}, args...)...)
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	for {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return addr
		}
		if ctx.Err() != nil {
			t.Fatal("mongod does not listen")
		}
		<-time.After(20 * time.Millisecond) // another process tells nothing
	}
}

// What keeps a broker from MongoDB is told in an operator's words, with an exit code and something to try.
func TestOpenError(t *testing.T) {
	standalone := serverOf(t, "--auth")
	ghost := serverOf(t, "--replSet", "rs0")
	for name, tt := range map[string]struct {
		url       string
		code      exit.Code
		text, try string
	}{
		"wrong credentials": {
			"mongodb://anna:geheim@" + standalone + "/?authSource=admin", exit.Auth,
			"mongodb://anna:xxxxx@" + standalone + `/?authSource=admin refused the user "anna": `, "authSource",
		},
		"a standalone":       {"mongodb://" + standalone, exit.Config, "standalone", "rs.initiate()"},
		"not initiated":      {"mongodb://" + ghost + "/?replicaSet=rs0&serverSelectionTimeoutMS=1000", exit.Connect, ghost, "rs.initiate()"},
		"nobody there":       {"mongodb://u:geheim@127.0.0.1:1/?serverSelectionTimeoutMS=200", exit.Connect, "127.0.0.1:1", "mongosh"},
		"no address":         {"mongodb://u:ge%zzheim@h/", exit.Config, "store.url: ", "mongodb://host1"},
		"behind a balancer":  {"mongodb://127.0.0.1:1/?loadBalanced=true", exit.Config, "loadBalanced", "mongodb://host1"},
		"another set's name": {"mongodb://" + ghost + "/?replicaSet=rs1&serverSelectionTimeoutMS=1000", exit.Connect, ghost, "rs.initiate()"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config.Default()
			c.Store.URL = tt.url
			_, err := Open(&c, prometheus.NewRegistry(), zap.NewNop())
			if err == nil {
				t.Fatal("it was opened")
			}
			err = OpenError(&c, err)
			if exit.Of(err) != tt.code || !strings.Contains(err.Error(), tt.text) || !strings.Contains(exit.Hint(err), tt.try) {
				t.Errorf("exit code %d: %v\nTry: %s", exit.Of(err), err, exit.Hint(err))
			}
			if strings.Contains(err.Error()+exit.Hint(err), "heim") || tt.code == exit.Auth && strings.Contains(err.Error(), "no answer") {
				t.Errorf("%v", err)
			}
			_, err = VerifySchema(t.Context(), &c, 1, zap.NewNop())
			if exit.Of(err) != tt.code {
				t.Errorf("verify: exit code %d: %v", exit.Of(err), err)
			}
		})
	}
}
