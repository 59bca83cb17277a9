package deploy

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v3"
)

const root = ".."

var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// program builds rewindmq and the example as the Dockerfile does: static.
func program(t *testing.T, name string) string {
	t.Helper()
	built.once.Do(func() {
		//nolint:usetesting // it outlives the test that builds; TestMain removes it
		if built.dir, built.err = os.MkdirTemp("", "rewindmq-deploy-"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-o", built.dir+string(filepath.Separator), "./cmd/rewindmq", "./docs/examples/outbox")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// project loads docker-compose.yml as docker compose does: interpolation, merge, schema, consistency.
func project(t *testing.T, environment types.Mapping) *types.Project {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: filepath.Dir(path), ConfigFiles: []types.ConfigFile{{Filename: path}}, Environment: environment,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// brokers gives the names of the services that run rewindmq.
func brokers(p *types.Project) []string {
	var names []string
	for name, s := range p.Services {
		if s.Build != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// imageEnv is what ENV in the Dockerfile sets.
func imageEnv(t *testing.T) []string {
	t.Helper()
	var env []string
	for _, m := range regexp.MustCompile(`(?m)^ENV (\S+=\S+)$`).FindAllStringSubmatch(read(t, "Dockerfile"), -1) {
		env = append(env, m[1])
	}
	if len(env) == 0 {
		t.Fatal("no ENV in the Dockerfile")
	}
	return env
}

// environ is the environment of a broker's container.
func environ(t *testing.T, s types.ServiceConfig) []string {
	t.Helper()
	env := imageEnv(t)
	for k, v := range s.Environment {
		if v == nil {
			t.Errorf("%s: %s has no value", s.Name, k)
			continue
		}
		env = append(env, k+"="+*v)
	}
	return env
}

// The program accepts the command line and the environment of every broker.
func TestBrokersConfiguration(t *testing.T) {
	t.Parallel()
	p := project(t, nil)
	names := brokers(p)
	if len(names) != 3 {
		t.Fatalf("brokers: %v", names)
	}
	published, called := map[string]bool{}, map[string]bool{}
	for _, name := range names {
		s := p.Services[name]
		if len(s.Command) == 0 || s.Command[0] != "serve" {
			t.Errorf("%s: command %q, want serve", name, s.Command)
			continue
		}
		out, err := run(t, environ(t, s), append([]string{"config", "check"}, s.Command[1:]...)...)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if !slices.Equal(s.HealthCheck.Test, []string{"CMD", "/rewindmq", "healthcheck"}) {
			t.Errorf("%s: health check %q", name, s.HealthCheck.Test)
		}
		if !s.ReadOnly {
			t.Errorf("%s: its root is writable", name)
		}
		if s.DependsOn["mongo-init"].Condition != types.ServiceConditionCompletedSuccessfully {
			t.Errorf("%s does not wait for the replica set", name)
		}
		node := *s.Environment["REWINDMQ_NODE__NAME"]
		if called[node] {
			t.Errorf("%s: the node name %s is taken", name, node)
		}
		called[node] = true
		for _, port := range s.Ports {
			if published[port.Published] {
				t.Errorf("%s: port %s is published twice", name, port.Published)
			}
			published[port.Published] = true
			if to := fmt.Sprint(port.Target); to != port1883(t, s) && to != httpPort(t, s) {
				t.Errorf("%s: port %s leads to %s, where nobody listens", name, port.Published, to)
			}
		}
	}
	for _, want := range []string{"1883", "1884", "1885"} {
		if !published[want] {
			t.Errorf("port %s is not published", want)
		}
	}
}

// A mistake in a broker's environment is noticed.
func TestBrokersConfigurationNotices(t *testing.T) {
	t.Parallel()
	env := append(environ(t, project(t, nil).Services["broker1"]), "REWINDMQ_STORE__MONGO__LANE=2")
	if out, err := run(t, env, "config", "check"); err == nil || !strings.Contains(out, "did you mean") {
		t.Errorf("a setting that does not exist: %v\n%s", err, out)
	}
}

func run(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, "rewindmq"), args...)
	cmd.Env, cmd.Dir = env, t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func port1883(t *testing.T, s types.ServiceConfig) string {
	return portOf(t, strings.TrimPrefix(*s.Environment["REWINDMQ_LISTEN"], "tcp://"))
}

func httpPort(t *testing.T, s types.ServiceConfig) string {
	return portOf(t, *s.Environment["REWINDMQ_HTTP__ADDR"])
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// The hosts and the name of the replica set are the same in the members, in the script that initiates it and in the
// brokers' connection string.
func TestReplicaSetFits(t *testing.T) {
	t.Parallel()
	p := project(t, nil)
	script := read(t, "deploy/mongodb/initiate.js")
	var want []string
	for name, s := range p.Services {
		if i := slices.Index(s.Command, "--replSet"); i >= 0 {
			want = append(want, name+":27017")
			if set := s.Command[i+1]; set != "rs0" || !strings.Contains(script, "_id: '"+set+"'") {
				t.Errorf("%s is a member of %s, which the script does not make", name, set)
			}
		}
	}
	slices.Sort(want)
	var hosts []string
	for _, m := range regexp.MustCompile(`host: '([^']+)'`).FindAllStringSubmatch(script, -1) {
		hosts = append(hosts, m[1])
	}
	if len(want) != 3 || !slices.Equal(hosts, want) {
		t.Errorf("the script's members are %v, the services %v", hosts, want)
	}
	for _, name := range brokers(p) {
		got := *p.Services[name].Environment["REWINDMQ_STORE__URL"]
		if full := "mongodb://" + strings.Join(want, ",") + "/?replicaSet=rs0"; got != full {
			t.Errorf("%s: %s, want %s", name, got, full)
		}
	}
}

// Files that are mounted are there, named volumes are declared, and the images can be chosen.
func TestMountsAndImages(t *testing.T) {
	t.Parallel()
	p := project(t, types.Mapping{"MONGO_IMAGE": "mongo:7.0", "REWINDMQ_VERSION": "v9"})
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				if info, err := os.Stat(v.Source); err != nil || !info.Mode().IsRegular() {
					t.Errorf("%s mounts %s: %v", name, v.Source, err)
				}
			} else if _, ok := p.Volumes[v.Source]; !ok {
				t.Errorf("%s: volume %s is not declared", name, v.Source)
			}
		}
		switch {
		case strings.HasPrefix(name, "mongo") && s.Image != "mongo:7.0", s.Build != nil && s.Image != "rewindmq:v9":
			t.Errorf("%s: image %s", name, s.Image)
		}
	}
}

// Prometheus scrapes every broker at its HTTP port.
func TestPrometheusTargets(t *testing.T) {
	t.Parallel()
	var file struct {
		Scrape []struct {
			Job    string `yaml:"job_name"`
			Static []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
		Rules []string `yaml:"rule_files"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "deploy/prometheus/prometheus.yml")), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Scrape) != 1 || file.Scrape[0].Job != "rewindmq" || len(file.Scrape[0].Static) != 1 {
		t.Fatalf("scrape configs: %+v", file.Scrape)
	}
	p := project(t, nil)
	var want []string
	for _, name := range brokers(p) {
		want = append(want, name+":"+httpPort(t, p.Services[name]))
	}
	if got := file.Scrape[0].Static[0].Targets; !slices.Equal(got, want) {
		t.Errorf("targets %v, want %v", got, want)
	}
	for _, rules := range file.Rules {
		target := "/etc/prometheus/" + rules
		if !slices.ContainsFunc(p.Services["prometheus"].Volumes, func(v types.ServiceVolumeConfig) bool { return v.Target == target }) {
			t.Errorf("%s is not mounted", target)
		}
	}
}

// The image is built static, runs as nobody without a shell, and nothing that the build reads is kept from it.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	text := read(t, "Dockerfile")
	_, final, found := strings.Cut(text, "FROM gcr.io/distroless/static:nonroot\n")
	if !found {
		t.Fatal("the image is not made from distroless static")
	}
	for _, want := range []string{
		`CMD ["/rewindmq", "healthcheck"]`, `ENTRYPOINT ["/rewindmq"]`, `CMD ["serve"]`, "USER nonroot", "VOLUME /data",
		"ENV REWINDMQ_STORE__DATA=/data", "--chown=65532:65532 /out/data /data",
	} {
		if !strings.Contains(final, want) {
			t.Errorf("the image lacks %s", want)
		}
	}
	for _, want := range []string{"CGO_ENABLED=0", "-trimpath", "./cmd/rewindmq"} {
		if !strings.Contains(text, want) {
			t.Errorf("the build lacks %s", want)
		}
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))[1]
	if !strings.Contains(text, "golang:"+goVersion+" ") {
		t.Errorf("the image is not built with Go %s", goVersion)
	}
	ignored := map[string]bool{}
	for line := range strings.Lines(read(t, ".dockerignore")) {
		ignored[strings.TrimPrefix(strings.TrimSpace(line), "/")] = true
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}} {{len .EmbedFiles}}{{end}}", "./cmd/rewindmq")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	ours := 0
	for line := range strings.Lines(string(out)) {
		path, embedded, _ := strings.Cut(strings.TrimSpace(line), " ")
		below, isOurs := strings.CutPrefix(path, "rewindmq/")
		if !isOurs {
			continue
		}
		ours++
		top, _, _ := strings.Cut(below, "/")
		if ignored[top] || ignored[below] {
			t.Errorf("the build needs %s, which .dockerignore leaves out", path)
		}
		if embedded != "0" {
			t.Errorf("%s embeds files: look whether .dockerignore lets them through, and say so here", path)
		}
	}
	if ours < 10 {
		t.Errorf("only %d packages were found", ours)
	}
}
