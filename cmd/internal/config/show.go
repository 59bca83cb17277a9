package config

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"
)

// Show writes the configuration as YAML that can be read back, except for passwords, which are hidden. With origin,
// each value is followed by where it came from.
func (l *Loaded) Show(w io.Writer, origin bool) error {
	return writeYAML(w, &l.Config, func(s setting) (before, after string) {
		if origin {
			return "", "  # " + l.origins[s.path]
		}
		return "", ""
	}, "")
}

// Template writes a file with every setting, its meaning and its default. All values are commented out, so that a
// later version's defaults hold for whoever did not choose.
func Template(w io.Writer) error {
	if _, err := io.WriteString(w, "# rewindmq configuration. What is commented out shows the default.\n"+
		"# Precedence: flag, environment, this file, default. `rewindmq config check -c FILE` checks it.\n"); err != nil {
		return err
	}
	c := Default()
	return writeYAML(w, &c, func(s setting) (before, after string) {
		note := s.doc
		if s.low != "" || s.enum != nil {
			note += " (" + s.accepts() + ")"
		}
		return "# " + note, ""
	}, "# ")
}

// writeYAML writes the settings of c as nested YAML. Notes stand before or after a value; mark precedes each value.
func writeYAML(w io.Writer, c *Config, note func(setting) (before, after string), mark string) error {
	var b strings.Builder
	var open []string
	for _, s := range settings() {
		keys := strings.Split(s.path, ".")
		sections := keys[:len(keys)-1]
		for depth, section := range sections {
			if depth >= len(open) || open[depth] != section {
				fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), section)
				open = append(open[:min(depth, len(open))], section)
			}
		}
		open = open[:len(sections)]
		indent := strings.Repeat("  ", len(sections))
		before, after := note(s)
		if before != "" {
			fmt.Fprintf(&b, "%s%s\n", indent, before)
		}
		fmt.Fprintf(&b, "%s%s%s: %s%s\n", indent, mark, keys[len(keys)-1], yamlValue(s, c), after)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// yamlValue returns a value so that YAML reads it back as it is. A JSON text is a YAML text.
func yamlValue(s setting, c *Config) string {
	v := s.in(c)
	switch {
	case s.secret:
		return quote(Redact(v.String()))
	case v.Kind() == reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = quote(v.Index(i).String())
		}
		return "[" + strings.Join(items, ", ") + "]"
	case v.Kind() == reflect.String:
		return quote(v.String())
	default:
		return text(v)
	}
}

func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // & is nothing special in YAML
	if err := enc.Encode(s); err != nil {
		panic(fmt.Sprintf("config: %q as JSON: %v", s, err)) // a string always can be
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Markdown returns the table of all settings for the README.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| setting | default | meaning |\n|---|---|---|\n")
	c := Default()
	for _, s := range settings() {
		value := s.text(&c)
		if value == "" {
			value = `""`
		}
		note := s.doc
		if s.low != "" || s.enum != nil {
			note += " (" + s.accepts() + ")"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", s.path, value, note)
	}
	return b.String()
}

// Schema returns the JSON Schema of the configuration file, for editors.
func Schema() ([]byte, error) {
	r := jsonschema.Reflector{
		FieldNameTag:               "koanf",
		DoNotReference:             true,
		ExpandedStruct:             true,
		Anonymous:                  true,
		RequiredFromJSONSchemaTags: true,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[Duration](), reflect.TypeFor[Size](), reflect.TypeFor[Reserve](), reflect.TypeFor[Expiry]():
				return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "string"}, {Type: "integer"}}}
			}
			return nil
		},
	}
	root := r.Reflect(&Config{})
	root.Title = "rewindmq configuration"
	c := Default()
	for _, s := range settings() {
		describe(property(root, s.path), s, &c)
	}
	return json.MarshalIndent(root, "", "  ")
}

func property(root *jsonschema.Schema, path string) *jsonschema.Schema {
	at := root
	for key := range strings.SplitSeq(path, ".") {
		next, ok := at.Properties.Get(key)
		if !ok {
			panic("config: the schema has no " + path)
		}
		at = next
	}
	return at
}

// describe adds to a property what the tags and the default say.
func describe(p *jsonschema.Schema, s setting, c *Config) {
	p.Description = s.doc
	v := s.in(c)
	switch v.Kind() {
	case reflect.Bool, reflect.Slice, reflect.String:
		p.Default = v.Interface()
	case reflect.Int:
		p.Default = v.Interface()
		p.Minimum, p.Maximum = json.Number(s.low), json.Number(s.high)
	default:
		p.Default = s.text(c)
		if s.low != "" {
			p.Description += " (" + s.accepts() + ")"
		}
	}
	for _, e := range s.enum {
		p.Enum = append(p.Enum, e)
	}
}
