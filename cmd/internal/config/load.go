package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// Sources says where the configuration comes from.
type Sources struct {
	// File is the path of the YAML file. Empty: no file, unless the environment names one in REWINDMQ_CONFIG.
	File string
	// Env is the environment, as os.Environ returns it.
	Env []string
	// Flags are the parsed flags of the command, and FlagPaths maps a flag's name to the key path that it sets.
	// Only flags that the user gave count.
	Flags     *pflag.FlagSet
	FlagPaths map[string]string
	// Set is a list of key=value from the command line; it counts as flags do.
	Set []string
	// Dev starts from addresses on the loopback interface, and refuses any other.
	Dev bool
}

// Loaded is a configuration together with where each value came from.
type Loaded struct {
	Config  Config
	origins map[string]string
}

// Origin returns where the value at a key path came from: default, dev, a file with its line, an environment variable
// or a flag.
func (l *Loaded) Origin(path string) string { return l.origins[path] }

// layer is what one source says: values by key path, with the place of each.
type layer struct {
	values *koanf.Koanf
	where  func(path string) string
	// name says how the user writes a key in this layer: as it is, or as an environment variable.
	name func(path string) string
}

// Load reads all sources. The error is of type Problems and names everything that is wrong, not only the first.
func Load(src Sources) (*Loaded, error) {
	l := &Loaded{Config: Default(), origins: map[string]string{}}
	for _, s := range settings() {
		l.origins[s.path] = "default"
	}
	var problems Problems
	for _, read := range []func(Sources) (layer, Problems){devLayer, fileLayer, envLayer, flagLayer, setLayer} {
		one, wrong := read(src)
		problems = append(problems, wrong...)
		if one.values != nil {
			problems = append(problems, l.apply(one)...)
		}
	}
	if l.Config.Node.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			problems = append(problems, Problem{
				Path: "node.name", What: fmt.Sprintf("is not set and the host has no name: %v", err), Try: "--node NAME",
			})
		}
		l.Config.Node.Name = name
	}
	if len(problems) == 0 {
		problems = l.validate(src.Dev)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return l, nil
}

// apply writes the values of one layer over those of the layers before it.
func (l *Loaded) apply(one layer) Problems {
	var problems Problems
	known := settings()
	paths := make([]string, len(known))
	for i, s := range known {
		paths[i] = s.path
		raw := one.values.Get(s.path)
		if raw == nil {
			continue
		}
		l.origins[s.path] = one.where(s.path)
		if err := s.set(&l.Config, raw); err != nil {
			problems = append(problems, Problem{
				Where: one.where(s.path), Path: s.path, Value: show(s, raw), What: err.Error(), Try: s.accepts(),
			})
		}
	}
	for _, key := range one.values.Keys() {
		if i := slices.Index(paths, key); i >= 0 {
			continue
		}
		raw := one.values.Get(key)
		if section := slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, key+".") }); section {
			if m, isMap := raw.(map[string]any); raw == nil || (isMap && len(m) == 0) {
				continue // a section with nothing in it, as in a file where all is commented out
			}
			problems = append(problems, Problem{
				Where: one.where(key), Path: key, What: "is a section and takes keys, not a value", Value: fmt.Sprint(raw),
			})
			continue
		}
		if slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(key, p+".") }) {
			continue // below a setting: reported there as a value of the wrong kind
		}
		p := Problem{Where: one.where(key), Path: one.name(key), What: "is not a setting", Try: "rewindmq config show"}
		if guess := nearest(key, paths); guess != "" {
			p.Try = "did you mean " + one.name(guess) + "?"
		}
		problems = append(problems, p)
	}
	return problems
}

// show returns raw for an error text. A secret stays hidden.
func show(s setting, raw any) string {
	if s.secret {
		return Redact(fmt.Sprint(raw))
	}
	return fmt.Sprintf("%q", fmt.Sprint(raw))
}

func asIs(path string) string { return path }

func devLayer(src Sources) (layer, Problems) {
	if !src.Dev {
		return layer{}, nil
	}
	k := koanf.New(".")
	err := k.Load(confmap.Provider(map[string]any{"listen": "tcp://127.0.0.1:1883", "http.addr": "127.0.0.1:8080"}, "."), nil)
	if err != nil {
		return layer{}, Problems{{Where: "--dev", What: err.Error()}}
	}
	return layer{k, func(string) string { return "dev" }, asIs}, nil
}

func fileLayer(src Sources) (layer, Problems) {
	path := src.File
	if path == "" {
		path = lookup(src.Env, envConfig)
	}
	if path == "" {
		return layer{}, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		try := "rewindmq config init " + path
		if !errors.Is(err, os.ErrNotExist) {
			try = "make the file readable for this user"
		}
		return layer{}, Problems{{Where: path, What: fmt.Sprintf("the configuration file cannot be read: %v", err), Try: try}}
	}
	lines, err := keyLines(text)
	if err != nil {
		return layer{}, Problems{{Where: path, What: fmt.Sprintf("this is not YAML: %v", err), Try: "rewindmq config init for an example"}}
	}
	values, err := yaml.Parser().Unmarshal(text)
	if err != nil {
		return layer{}, Problems{{Where: path, What: fmt.Sprintf("this is not YAML with keys: %v", err), Try: "rewindmq config init for an example"}}
	}
	k := koanf.New(".")
	if err := k.Load(confmap.Provider(values, ""), nil); err != nil {
		return layer{}, Problems{{Where: path, What: err.Error()}}
	}
	where := func(key string) string {
		if line, ok := lines[key]; ok {
			return fmt.Sprintf("%s:%d", path, line)
		}
		return path
	}
	return layer{k, where, asIs}, nil
}

func flagLayer(src Sources) (layer, Problems) {
	if src.Flags == nil {
		return layer{}, nil
	}
	flags := map[string]string{}
	k := koanf.New(".")
	provider := posflag.ProviderWithFlag(src.Flags, ".", k, func(f *pflag.Flag) (string, any) {
		path, ours := src.FlagPaths[f.Name]
		if !ours || !f.Changed {
			return "", nil
		}
		flags[path] = "--" + f.Name
		return path, posflag.FlagVal(src.Flags, f)
	})
	if err := k.Load(provider, nil); err != nil {
		return layer{}, Problems{{Where: "flags", What: err.Error()}}
	}
	return layer{k, func(path string) string { return flags[path] }, asIs}, nil
}

func setLayer(src Sources) (layer, Problems) {
	var problems Problems
	k := koanf.New(".")
	for _, pair := range src.Set {
		key, value, found := strings.Cut(pair, "=")
		if !found || key == "" {
			problems = append(problems, Problem{
				Where: "--set", Value: fmt.Sprintf("%q", pair), What: "the flag takes key=value", Try: "--set limits.window=500",
			})
			continue
		}
		if err := k.Set(key, value); err != nil {
			problems = append(problems, Problem{Where: "--set", Path: key, What: err.Error()})
		}
	}
	return layer{k, func(string) string { return "--set" }, asIs}, problems
}

const (
	envPrefix = "REWINDMQ_"
	envConfig = "REWINDMQ_CONFIG"
)

// notSettings are the variables with our prefix that are no settings: those of the project's tests, and those that
// Kubernetes and container links put into the environment beside a service with the name rewindmq.
var notSettings = [...]string{
	"REWINDMQ_TEST_", "REWINDMQ_SIM_", "REWINDMQ_MQTT_SEQUENCES", envConfig, "REWINDMQ_SERVICE_", "REWINDMQ_PORT",
}

func envLayer(src Sources) (layer, Problems) {
	var problems Problems
	known := settings()
	isSetting := func(path string) bool {
		return slices.ContainsFunc(known, func(s setting) bool { return s.path == path })
	}
	names := map[string]string{}
	k := koanf.New(".")
	provider := env.Provider(".", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return src.Env },
		TransformFunc: func(name, value string) (string, any) {
			if value == "" || slices.ContainsFunc(notSettings[:], func(p string) bool { return strings.HasPrefix(name, p) }) {
				return "", nil // an empty variable is one that is not set, as compose files write it
			}
			path := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, envPrefix), "__", "."))
			if base, fromFile := strings.CutSuffix(path, "_file"); fromFile && !isSetting(path) && isSetting(base) {
				if lookup(src.Env, strings.TrimSuffix(name, "_FILE")) != "" {
					problems = append(problems, Problem{
						Where: name, Path: base, What: "is set twice, here and by " + strings.TrimSuffix(name, "_FILE"), Try: "unset one of them",
					})
				}
				text, err := os.ReadFile(value)
				if err != nil {
					problems = append(problems, Problem{
						Where: name, Path: base, What: fmt.Sprintf("cannot be read from its file: %v", err), Try: "check the path and its rights",
					})
					return "", nil
				}
				path, value = base, strings.TrimRight(string(text), "\r\n")
			}
			names[path] = name
			return path, value
		},
	})
	if err := k.Load(provider, nil); err != nil {
		return layer{}, append(problems, Problem{Where: "environment", What: err.Error()})
	}
	return layer{k, func(path string) string { return "env " + names[path] }, envName}, problems
}

// lookup returns the value of name in an environment, or an empty string.
func lookup(environ []string, name string) string {
	for _, pair := range environ {
		if value, found := strings.CutPrefix(pair, name+"="); found {
			return value
		}
	}
	return ""
}
