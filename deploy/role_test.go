package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/integration/mongod"
)

// The roles of docs/mongodb.md are enough, and not more than that: two brokers with the environment of docker-compose.yml,
// the outbox example and `schema verify` do all their work on a mongod with access control, and nothing is denied. What was
// inserted while a session was away reaches it, once, on another broker.
func TestRolesAndOutbox(t *testing.T) {
	t.Parallel()
	d := startGuarded(t)
	d.before(t)
	compose := project(t, nil)
	one := startBroker(t, environ(t, compose.Services["broker1"]), d.uri("broker", "mqtt"))
	// The second has another retention: it changes the TTL in place.
	const shorter = "REWINDMQ_STORE__RETENTION__MESSAGES=30d"
	two := startBroker(t, append(environ(t, compose.Services["broker2"]), shorter), d.uri("broker", "mqtt"))

	sub := start(t, nil, "sub", "-p", one.port, "-t", "shop/#", "-i", "laptop", "--persistent")
	until(t, "the subscription", func(ctx context.Context) bool {
		n, err := d.root.Database("mqtt").Collection("subscription").CountDocuments(ctx, bson.D{{Key: "clientId", Value: "laptop"}})
		return err == nil && n == 1
	})
	sub.interrupt()

	publish(t, d.uri("shop", "shop"))
	if out, err := run(t, nil, "pub", "-p", one.port, "-t", "shop/notice", "-m", "hello"); err != nil {
		t.Errorf("pub: %v\n%s", err, out)
	}
	want := 2
	if python := pymongo(t); python != "" {
		want++
		cmd := exec.CommandContext(t.Context(), python, filepath.Join(root, "docs", "examples", "outbox.py"), d.uri("shop", "shop"), "4712")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("outbox.py: %v\n%s", err, out)
		}
	}
	out, err := run(t, nil, "sub", "-p", two.port, "-t", "shop/#", "-i", "laptop", "--persistent", "-o", "json", "-C", fmt.Sprint(want), "-W", "60")
	if err != nil || strings.Count(out, "shop/order/4711") != 1 || strings.Count(out, "shop/notice") != 1 {
		t.Errorf("the session got: %v\n%s", err, out)
	}

	// The keeper removes a session that ended.
	if out, err := run(t, nil, "sub", "-p", two.port, "-t", "other", "-i", "short", "-W", "1"); code(err) != 6 && err != nil {
		t.Errorf("sub: %v\n%s", err, out)
	}
	until(t, "the end of the clean session", func(ctx context.Context) bool {
		n, err := d.root.Database("mqtt").Collection("session").CountDocuments(ctx, bson.D{{Key: "_id", Value: "short"}})
		return err == nil && n == 0
	})
	if out, err := run(t, []string{shorter}, "schema", "verify", "--store", d.uri("verify", "mqtt")); err != nil {
		t.Errorf("schema verify: %v\n%s", err, out)
	}
	// The keeper finishes a broker that was killed.
	one.kill()
	until(t, "the end of the killed broker", func(ctx context.Context) bool {
		n, err := d.root.Database("mqtt").Collection("node").CountDocuments(ctx, bson.D{
			{Key: "name", Value: "broker1"}, {Key: "finished", Value: bson.D{{Key: "$exists", Value: true}}},
		})
		return err == nil && n == 1
	})
	two.interrupt()
	for _, p := range []*process{one, two} {
		if log := p.out.String(); strings.Contains(log, "not authorized") {
			t.Errorf("a broker was denied something:\n%s", log)
		}
	}
	if denied := d.denied(t); len(denied) > 0 {
		t.Errorf("the server denied:\n%s", strings.Join(denied, "\n"))
	}
	d.notMore(t)
}

// before stores what others may have had there before the first start: the broker makes history of it.
func (d *guarded) before(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	db := d.root.Database("mqtt")
	_, err := db.Collection("message").InsertOne(ctx, bson.D{{Key: "topic", Value: "old"}, {Key: "data", Value: "x"}, {Key: "retain", Value: true}})
	if err == nil {
		_, err = db.Collection("subscription").InsertOne(ctx, bson.D{
			{Key: "topic", Value: "old/#"},
			{Key: "clientId", Value: "old"},
			{Key: "qos", Value: 1},
			{Key: "created", Value: time.Now()},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// notMore tries what the roles must not allow, and what `schema verify` says of a database that differs.
func (d *guarded) notMore(t *testing.T) {
	t.Helper()
	if out, err := run(t, nil, "schema", "verify", "--store", d.uri("verify", "mqtt")); code(err) != 7 || !strings.Contains(out, "index message.ttl: TTL differs") {
		t.Errorf("with another retention: %v\n%s", err, out)
	}
	if out, err := run(t, nil, "schema", "verify", "--store", d.uri("shop", "mqtt")); code(err) != 5 {
		t.Errorf("verify without the right: %v\n%s", err, out)
	}
	if out, err := run(t, nil, "schema", "verify", "--store", strings.Replace(d.uri("verify", "mqtt"), "verify:", "verify:not", 1)); code(err) != 5 {
		t.Errorf("verify with a wrong password: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all := bson.D{}
	for user, try := range map[string]func(*mongo.Database) error{
		"shop": func(db *mongo.Database) error { return db.Collection("message").FindOne(ctx, all).Err() },
		"verify": func(db *mongo.Database) error {
			_, err := db.Collection("message").InsertOne(ctx, bson.D{{Key: "topic", Value: "t"}, {Key: "data", Value: "x"}})
			return err
		},
		"broker": func(db *mongo.Database) error { _, err := db.Collection("message").DeleteMany(ctx, all); return err },
	} {
		c := connect(t, d.uri(user, "mqtt"))
		var server mongo.ServerError
		if err := try(c.Database("mqtt")); !errors.As(err, &server) || !server.HasErrorCode(13) {
			t.Errorf("%s did what it must not: %v", user, err)
		}
	}
}

// publish runs the Go example.
func publish(t *testing.T, uri string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, "outbox"), uri, "4711")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("outbox: %v\n%s", err, out)
	}
}

// pymongo gives a Python that can run the example, or nothing.
func pymongo(t *testing.T) string {
	t.Helper()
	python := os.Getenv("REWINDMQ_TEST_PYTHON")
	if python == "" {
		python = "python3"
	}
	if exec.CommandContext(t.Context(), python, "-c", "import pymongo").Run() != nil {
		t.Log("no Python with PyMongo here (REWINDMQ_TEST_PYTHON): the Python example is only compiled")
		return ""
	}
	return python
}

// The Python example is Python.
func TestPythonExample(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on the PATH")
	}
	cmd := exec.CommandContext(t.Context(), python, "-m", "py_compile", filepath.Join(root, "docs", "examples", "outbox.py"))
	cmd.Env = append(os.Environ(), "PYTHONPYCACHEPREFIX="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// guarded is a mongod with access control and the users of docs/mongodb.md.
type guarded struct {
	addr string
	log  string
	root *mongo.Client
}

func (d *guarded) uri(user, db string) string {
	return fmt.Sprintf("mongodb://%s:%s-secret@%s/%s?replicaSet=rs0&authSource=admin", user, user, d.addr, db)
}

// denied gives the lines of the server's log that say that a user was denied something.
func (d *guarded) denied(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(d.log)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "uthorization failed") || strings.Contains(line, "not authorized") {
			lines = append(lines, line)
		}
	}
	return lines
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	binary := mongod.Need(t)
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &guarded{addr: l.Addr().String(), log: filepath.Join(dir, "mongod.log")}
	_ = l.Close()
	_, port, _ := net.SplitHostPort(d.addr)
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("k", 64)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--replSet", "rs0", "--keyFile", key, "--bind_ip", "127.0.0.1", "--port", port, "--dbpath", dir,
		"--logpath", d.log, "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64")
	spawn(t, cmd)

	open := connect(t, "mongodb://"+d.addr+"/?directConnection=true") // the localhost exception: until there is a user
	admin := open.Database("admin")
	until(t, "the replica set", func(ctx context.Context) bool {
		err := admin.RunCommand(ctx, bson.D{{Key: "replSetInitiate", Value: bson.D{{Key: "_id", Value: "rs0"}, {
			Key: "members", Value: bson.A{bson.D{{Key: "_id", Value: 0}, {Key: "host", Value: d.addr}}},
		}}}}).Err()
		var server mongo.ServerError
		return err == nil || (errors.As(err, &server) && server.HasErrorCode(23))
	})
	until(t, "the first user", func(ctx context.Context) bool {
		return admin.RunCommand(ctx, bson.D{
			{Key: "createUser", Value: "root"},
			{Key: "pwd", Value: "root-secret"},
			{Key: "roles", Value: bson.A{"root"}},
		}).Err() == nil
	})
	d.root = connect(t, d.uri("root", "admin"))
	d.makeRoles(t)
	return d
}

// makeRoles makes the roles that stand in docs/mongodb.md, word for word, and a user for each.
func (d *guarded) makeRoles(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	admin := d.root.Database("admin")
	blocks := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(read(t, "docs/mongodb.md"), -1)
	if len(blocks) != 3 {
		t.Fatalf("%d roles in docs/mongodb.md, want 3", len(blocks))
	}
	for _, b := range blocks {
		var role bson.D
		if err := bson.UnmarshalExtJSON([]byte(b[1]), false, &role); err != nil {
			t.Fatalf("%v in %s", err, b[1])
		}
		if err := admin.RunCommand(ctx, role).Err(); err != nil {
			t.Fatalf("%v: %v", role[0], err)
		}
	}
	own := bson.D{{Key: "createRole", Value: "shopOrder"}, {Key: "roles", Value: bson.A{}}, {Key: "privileges", Value: bson.A{bson.D{
		{Key: "resource", Value: bson.D{{Key: "db", Value: "shop"}, {Key: "collection", Value: "order"}}},
		{Key: "actions", Value: bson.A{"insert", "createCollection"}},
	}}}}
	if err := admin.RunCommand(ctx, own).Err(); err != nil {
		t.Fatal(err)
	}
	for user, roles := range map[string]bson.A{"broker": {"rewindmqBroker"}, "verify": {"rewindmqVerify"}, "shop": {"rewindmqPublisher", "shopOrder"}} {
		err := admin.RunCommand(ctx, bson.D{{Key: "createUser", Value: user}, {Key: "pwd", Value: user + "-secret"}, {Key: "roles", Value: roles}}).Err()
		if err != nil {
			t.Fatalf("user %s: %v", user, err)
		}
	}
}

func connect(t *testing.T, uri string) *mongo.Client {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(uri))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	return c
}

// process is one that the test started.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *output
	gone chan struct{} // closed when it has been waited for
	port string        // of MQTT, where it is a broker
}

// output can be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// spawn starts a command and kills it when the test ends.
func spawn(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, out: &output{}, gone: make(chan struct{})}
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = p.out, p.out, dieWithParent()
	started := make(chan error)
	go func() { // it stays on the thread that the kernel watches, and ends with the process
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(p.gone)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.gone
	})
	return p
}

func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(program(t, "rewindmq"), args...)
	cmd.Env, cmd.Dir = env, t.TempDir()
	if env == nil {
		cmd.Env = []string{}
	}
	return spawn(t, cmd)
}

// interrupt sends Ctrl-C and waits for the end.
func (p *process) interrupt() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.gone:
	case <-time.After(time.Minute):
		p.t.Fatalf("%v does not end:\n%s", p.cmd.Args, p.out)
	}
}

// kill sends SIGKILL and waits for the end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.gone
}

// startBroker runs a broker of the compose file as a plain process, on free ports, and waits until its health check says
// that it is ready.
func startBroker(t *testing.T, env []string, uri string) *process {
	t.Helper()
	env = append(env, "REWINDMQ_STORE__URL="+uri, "REWINDMQ_LISTEN=tcp://127.0.0.1:0", "REWINDMQ_HTTP__ADDR=127.0.0.1:0")
	p := start(t, env, "serve")
	said := regexp.MustCompile(`"listeners":\["tcp://127\.0\.0\.1:(\d+)"\],"http":"http://([^"]+)"`)
	until(t, "the broker", func(ctx context.Context) bool {
		select {
		case <-p.gone:
			t.Fatalf("the broker ended:\n%s", p.out)
		default:
		}
		m := said.FindStringSubmatch(p.out.String())
		if m == nil {
			return false
		}
		p.port = m[1]
		check := exec.CommandContext(ctx, program(t, "rewindmq"), "healthcheck")
		check.Env = append(env, "REWINDMQ_HTTP__ADDR="+m[2])
		return check.Run() == nil
	})
	return p
}

// until waits for a condition.
func until(t *testing.T, what string, cond func(ctx context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s", what)
		case <-tick.C:
		}
	}
}

func code(err error) int {
	if exited := (*exec.ExitError)(nil); errors.As(err, &exited) {
		return exited.ExitCode()
	}
	return -1
}
