package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func dataFlag(t *testing.T, args ...string) (*pflag.FlagSet, map[string]string) {
	t.Helper()
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	fs.String("data", "./flag-default", "")
	fs.StringArray("listen", nil, "")
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs, map[string]string{"data": "store.data", "listen": "listen"}
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	file := write(t, "rewindmq.yaml", "store:\n  retention:\n    messages: 10d\n  data: from-file\n")
	secret := write(t, "secret", "from-secret-file\n")
	tests := []struct {
		name       string
		file       string
		env        []string
		args       []string
		set        []string
		want       string
		wantOrigin string
	}{
		{"default", "", nil, nil, nil, "./data", "default"},
		{"file over default", file, nil, nil, nil, "from-file", file + ":4"},
		{"env over file", file, []string{"REWINDMQ_STORE__DATA=from-env"}, nil, nil, "from-env", "env REWINDMQ_STORE__DATA"},
		{"env file over file", file, []string{"REWINDMQ_STORE__DATA_FILE=" + secret}, nil, nil, "from-secret-file", "env REWINDMQ_STORE__DATA_FILE"},
		{"flag over env", file, []string{"REWINDMQ_STORE__DATA=from-env"}, []string{"--data", "from-flag"}, nil, "from-flag", "--data"},
		{"flag with the default's text is still a choice", file, nil, []string{"--data", "./data"}, nil, "./data", "--data"},
		{"set is a flag", file, []string{"REWINDMQ_STORE__DATA=from-env"}, nil, []string{"store.data=from-set"}, "from-set", "--set"},
		{"file named by env", "", []string{"REWINDMQ_CONFIG=" + file}, nil, nil, "from-file", file + ":4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fs, paths := dataFlag(t, tt.args...)
			l, err := Load(Sources{File: tt.file, Env: tt.env, Flags: fs, FlagPaths: paths, Set: tt.set})
			if err != nil {
				t.Fatal(err)
			}
			if l.Config.Store.Data != tt.want || l.Origin("store.data") != tt.wantOrigin {
				t.Errorf("store.data = %q from %q, want %q from %q", l.Config.Store.Data, l.Origin("store.data"), tt.want, tt.wantOrigin)
			}
			if tt.file != "" && l.Config.Store.Retention.Messages.String() != "10d" {
				t.Errorf("a layer above the file changed a setting that it does not name: %v", l.Config.Store.Retention.Messages)
			}
		})
	}
}

func TestWrong(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		file string
		env  []string
		args []string
		set  []string
		dev  bool
		want []string // each must be in the text
	}{
		{name: "unknown key in the file", file: "store:\n  dta: x\n", want: []string{"rewindmq.yaml:2: store.dta is not a setting", "did you mean store.data?"}},
		{name: "missing section", file: "window: 5\n", want: []string{"did you mean limits.window?"}},
		{name: "unknown section", file: "nonsense:\n  entirely: 1\n", want: []string{"nonsense.entirely is not a setting", "rewindmq config show"}},
		{name: "unknown variable", env: []string{"REWINDMQ_STORE_DATA=x"}, want: []string{"REWINDMQ_STORE_DATA is not a setting", "did you mean REWINDMQ_STORE__DATA?"}},
		{name: "variable and its file", env: []string{"REWINDMQ_STORE__DATA=x", "REWINDMQ_STORE__DATA_FILE=/dev/null"}, want: []string{"set twice"}},
		{name: "secret without a file", env: []string{"REWINDMQ_STORE__DATA_FILE=/no/such"}, want: []string{"REWINDMQ_STORE__DATA_FILE: store.data cannot be read"}},
		{name: "section as a value in env", env: []string{"REWINDMQ_STORE=x"}, want: []string{"REWINDMQ_STORE", "is a section"}},
		{name: "section and a key of it in env", env: []string{"REWINDMQ_STORE=x", "REWINDMQ_STORE__DATA=y"}, want: []string{"store"}},
		{name: "section as a value", file: "store: x\n", want: []string{"rewindmq.yaml:1: store is a section"}},
		{name: "value as a section", file: "store:\n  data:\n    x: 1\n", want: []string{"rewindmq.yaml:2: store.data takes one value"}},
		{name: "not YAML", file: "a: [\n", want: []string{"this is not YAML", "config init"}},
		{name: "a list is not YAML with keys", file: "- a\n", want: []string{"not YAML with keys"}},
		{name: "key twice", file: "listen: x:1\nlisten: y:1\n", want: []string{"not YAML"}},
		{name: "no unit", file: "append:\n  hold: 60\n", want: []string{"rewindmq.yaml:2: append.hold is not a time", `"60"`}},
		{name: "too many", file: "limits:\n  window: 65536\n", want: []string{"limits.window is more than 65535", "from 1 to 65535"}},
		{name: "too few", set: []string{"limits.window=0"}, want: []string{"--set: limits.window is less than 1"}},
		{name: "too large", set: []string{"limits.packet_size=9MiB"}, want: []string{"limits.packet_size is more than 8MiB"}},
		{name: "not in the list", set: []string{"log.level=loud"}, want: []string{"log.level is not one of debug, info, warn, error"}},
		{name: "set without a value", set: []string{"limits.window"}, want: []string{"key=value"}},
		{name: "set with an unknown key", set: []string{"limits.windows=1"}, want: []string{"did you mean limits.window?"}},
		{name: "a letter too few, where another section has the word", set: []string{"store.retention.message=1d"}, want: []string{"did you mean store.retention.messages?"}},
		{name: "no store", set: []string{"store.url=sqlite"}, want: []string{"names no store"}},
		{name: "no host", set: []string{"store.url=mongodb+srv://u:geheim@/?w=1"}, want: []string{"store.url names no host (got mongodb+srv://u:xxxxx@/?w=1)"}},
		{name: "nothing behind the scheme", set: []string{"store.url=mongodb://"}, want: []string{"store.url names no host"}},
		{name: "tls listener", args: []string{"--listen", "tls://:8883"}, want: []string{"--listen: listen asks for tls"}},
		{name: "no port", args: []string{"--listen", "tcp://localhost"}, want: []string{"is not host:port"}},
		{name: "port out of range", args: []string{"--listen", ":70000"}, want: []string{"no port from 0 to 65535"}},
		{name: "path on tcp", args: []string{"--listen", "tcp://:1/x"}, want: []string{"has a path"}},
		{name: "twice", args: []string{"--listen", ":1", "--listen", "tcp://:1"}, want: []string{"twice"}},
		{name: "no listener", file: "listen: []\n", want: []string{"is empty"}},
		{name: "dev is loopback only", dev: true, args: []string{"--listen", "0.0.0.0:1"}, want: []string{"as --dev demands"}},
		{name: "dev is loopback only for HTTP", dev: true, set: []string{"http.addr=:8080"}, want: []string{"http.addr", "as --dev demands"}},
		{name: "all at once", file: "limits:\n  window: x\n  windo: 1\nlog:\n  level: loud\n", want: []string{"limits.window is not a whole", "limits.windo ", "log.level"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			src := Sources{Env: tt.env, Set: tt.set, Dev: tt.dev}
			if tt.file != "" {
				src.File = write(t, "rewindmq.yaml", tt.file)
			}
			src.Flags, src.FlagPaths = dataFlag(t, tt.args...)
			l, err := Load(src)
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("got %v and %v, want Problems", l, err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Errorf("a password is in the error: %q", err)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	_, err := Load(Sources{File: "no-such.yaml"})
	if err == nil || !strings.Contains(err.Error(), "rewindmq config init no-such.yaml") {
		t.Errorf("got %v, want a hint at config init", err)
	}
}

func TestVariablesThatAreNoSettings(t *testing.T) {
	t.Parallel()
	_, err := Load(Sources{Env: []string{
		"REWINDMQ_TEST_SCALE=soak", "REWINDMQ_SIM_SEEDS=5", "REWINDMQ_MQTT_SEQUENCES=x", "PATH=/bin",
		"REWINDMQ_SERVICE_HOST=10.0.0.1", "REWINDMQ_PORT=tcp://10.0.0.1:1883", "REWINDMQ_PORT_1883_TCP_ADDR=10.0.0.1",
		"REWINDMQ_STORE__DATA=", "REWINDMQ_NONSENSE=",
	}})
	if err != nil {
		t.Error(err)
	}
}

func TestEmptySections(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "store:\n", "store: {}\n", "store:\n  data:\n", "# nothing\n"} {
		l, err := Load(Sources{File: write(t, "c.yaml", text)})
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if l.Origin("store.data") != "default" {
			t.Errorf("%q: origin %q, want default", text, l.Origin("store.data"))
		}
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	want := []string{"tcp://:1883", "ws://127.0.0.1:8083/mqtt"}
	for name, src := range map[string]Sources{
		"file list": {File: write(t, "c.yaml", "listen: [':1883', 'ws://127.0.0.1:8083/mqtt']\n")},
		"env":       {Env: []string{"REWINDMQ_LISTEN=:1883, ws://127.0.0.1:8083/mqtt"}},
		"set":       {Set: []string{"listen=tcp://:1883,ws://127.0.0.1:8083/mqtt"}},
	} {
		l, err := Load(src)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := strings.Join(l.Config.Listen, " "); got != strings.Join(want, " ") {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestDev(t *testing.T) {
	t.Parallel()
	l, err := Load(Sources{Dev: true, Set: []string{"http.addr=127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	if l.Config.Listen[0] != "tcp://127.0.0.1:1883" || l.Origin("listen") != "dev" || l.Config.HTTP.Addr != "127.0.0.1:0" {
		t.Errorf("got %v from %s and %v", l.Config.Listen, l.Origin("listen"), l.Config.HTTP)
	}
}

// Every setting can be set by each layer to its own default, and comes back the same: so none lacks a parser, and the
// text of each value is one that the parser takes.
func TestEverySettingRoundTrips(t *testing.T) {
	t.Parallel()
	def := Default()
	var env, set []string
	for _, s := range settings() {
		if s.doc == "" {
			t.Errorf("%s has no doc tag", s.path)
		}
		value := s.text(&def)
		if value == "" {
			continue
		}
		env = append(env, s.env()+"="+value)
		set = append(set, s.path+"="+value)
	}
	for name, src := range map[string]Sources{"env": {Env: env}, "set": {Set: set}} {
		l, err := Load(src)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, s := range settings() {
			if s.text(&def) != "" && s.text(&l.Config) != s.text(&def) {
				t.Errorf("%s: %s = %s, want %s", name, s.path, s.text(&l.Config), s.text(&def))
			}
		}
	}
}

// What show writes is a file that gives the same configuration.
func TestShowIsAFile(t *testing.T) {
	t.Parallel()
	first, err := Load(Sources{Set: []string{"listen=:1,ws://:2", "node.name=a: b # c", "store.retention.records=90m", "limits.session_expiry_max=7d", "store.disk_reserve=1GiB"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, origin := range []bool{false, true} {
		var b bytes.Buffer
		if err := first.Show(&b, origin); err != nil {
			t.Fatal(err)
		}
		second, err := Load(Sources{File: write(t, "c.yaml", b.String())})
		if err != nil {
			t.Fatalf("%v\n%s", err, b.String())
		}
		for _, s := range settings() {
			if s.text(&first.Config) != s.text(&second.Config) {
				t.Errorf("%s = %q, want %q", s.path, s.text(&second.Config), s.text(&first.Config))
			}
		}
		if origin && !strings.Contains(b.String(), `"a: b # c"  # --set`) {
			t.Errorf("no origin in\n%s", b.String())
		}
	}
}

func TestTemplateIsAFile(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := Template(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Sources{File: write(t, "c.yaml", b.String())}); err != nil {
		t.Error(err)
	}
	def := Default()
	for _, set := range settings() {
		key := set.path[strings.LastIndexByte(set.path, '.')+1:]
		if line := "# " + key + ": " + yamlValue(set, &def) + "\n"; !strings.Contains(b.String(), line) {
			t.Errorf("no line %q", line)
		}
	}
}

func TestShowHidesPasswords(t *testing.T) {
	t.Parallel()
	l := &Loaded{Config: Default(), origins: map[string]string{}}
	l.Config.Store.URL = "mongodb://user:geheim@host/db?a=b&tlsCertificateKeyFilePassword=geheim"
	var b bytes.Buffer
	if err := l.Show(&b, true); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "geheim") || !strings.Contains(b.String(), `host/db?a=b&tls`) {
		t.Errorf("a password is shown, or the rest is not as it was:\n%s", b.String())
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"embedded":                            "embedded",
		"mongodb://h1,h2:27018/?w=1&ssl=true": "mongodb://h1,h2:27018/?w=1&ssl=true",
		"mongodb://u@h/":                      "mongodb://u@h/",
		"mongodb://u:geheim@h:1,i:2/db":       "mongodb://u:xxxxx@h:1,i:2/db",
		"mongodb://u:ge@he/im@h/db":           "mongodb://u:xxxxx@h/db",
		"mongodb://u:geh%zzeim@h/":            "mongodb://u:xxxxx@h/",
		"mongodb://u:geh?eim@h/":              "an address that cannot be shown",
		"u:geheim@h":                          "u:xxxxx@h",
		"mongodb://h/?tlsCertificateKeyFilePassword=geheim&w=1;SSLClientCertificateKeyPassword=geheim": "mongodb://h/?tlsCertificateKeyFilePassword=xxxxx&w=1;SSLClientCertificateKeyPassword=xxxxx",
		"mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN%3Age%2Cheim":                           "mongodb://h/?authMechanismProperties=xxxxx",
		"mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:geheim,A:b":                            "mongodb://h/?authMechanismProperties=xxxxx",
		"mongodb://h/?authMechanismProperties=SERVICE_NAME:x":                                          "mongodb://h/?authMechanismProperties=SERVICE_NAME:x",
		"mongodb://h/?proxyPass%77ord=geheim":                                                          "mongodb://h/?proxyPass%77ord=xxxxx",
		"mongodb://h/?authMechanismProperties=%zzgeheim":                                               "mongodb://h/?authMechanismProperties=xxxxx",
	} {
		if got := Redact(address); got != want {
			t.Errorf("%s: got %s, want %s", address, got, want)
		}
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	limits := root["properties"].(map[string]any)["limits"].(map[string]any)
	window := limits["properties"].(map[string]any)["window"].(map[string]any)
	if window["maximum"] != 65535.0 || window["default"] != 1000.0 || window["description"] == "" || limits["additionalProperties"] != false {
		t.Errorf("got %v in %v", window, limits)
	}
}
