package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// setting is one leaf of Config. All that the user sees of it is derived from its place in the struct and its tags.
type setting struct {
	path   string // key path, such as store.retention.messages
	doc    string
	low    string // least value as text; empty: no bound
	high   string // greatest value as text; empty: no bound
	enum   []string
	secret bool // its value may hold a password
	index  []int
	typ    reflect.Type
}

// settings lists the leaves of Config in the order of the struct.
func settings() []setting { return leaves(reflect.TypeFor[Config](), "", nil) }

func leaves(t reflect.Type, prefix string, index []int) []setting {
	var list []setting
	for i := range t.NumField() {
		f := t.Field(i)
		path := prefix + f.Tag.Get("koanf")
		at := append(slices.Clone(index), i)
		if f.Type.Kind() == reflect.Struct {
			list = append(list, leaves(f.Type, path+".", at)...)
			continue
		}
		s := setting{
			path: path, doc: f.Tag.Get("doc"), low: f.Tag.Get("min"), high: f.Tag.Get("max"),
			secret: f.Tag.Get("secret") != "", index: at, typ: f.Type,
		}
		if enum := f.Tag.Get("enum"); enum != "" {
			s.enum = strings.Split(enum, ",")
		}
		list = append(list, s)
	}
	return list
}

// env returns the name of the environment variable that sets s.
func (s setting) env() string { return envName(s.path) }

func envName(path string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "__"))
}

// in returns the field of c that s stands for.
func (s setting) in(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByIndex(s.index) }

// text returns the value of s in c as a user would write it.
func (s setting) text(c *Config) string { return text(s.in(c)) }

func text(v reflect.Value) string {
	if list, ok := v.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v.Interface())
}

// set parses raw, as a layer gave it, and stores it in c. The error says what is wrong with the value and not where.
func (s setting) set(c *Config, raw any) error {
	if s.typ == reflect.TypeFor[[]string]() {
		list, err := stringList(raw)
		if err != nil {
			return err
		}
		s.in(c).Set(reflect.ValueOf(list))
		return nil
	}
	switch raw.(type) {
	case map[string]any, []any, []string:
		return errors.New("takes one value")
	}
	v := s.in(c)
	if err := parse(v, fmt.Sprint(raw)); err != nil {
		return err
	}
	return s.check(v)
}

func stringList(raw any) ([]string, error) {
	switch raw := raw.(type) {
	case []string:
		return raw, nil
	case []any:
		list := make([]string, 0, len(raw))
		for _, item := range raw {
			switch item.(type) {
			case map[string]any, []any, nil:
				return nil, errors.New("takes a list of texts")
			}
			list = append(list, fmt.Sprint(item))
		}
		return list, nil
	case map[string]any:
		return nil, errors.New("takes a list of texts")
	default:
		var list []string
		for item := range strings.SplitSeq(fmt.Sprint(raw), ",") {
			list = append(list, strings.TrimSpace(item))
		}
		return list, nil
	}
}

// parse reads text into v by the type of v.
func parse(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("is neither true nor false")
		}
		v.SetBool(b)
	case reflect.Int:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return errors.New("is not a whole number")
		}
		v.SetInt(n)
	case reflect.String:
		v.SetString(text)
	default:
		panic(fmt.Sprintf("config: no parser for %s", v.Type()))
	}
	return nil
}

// check judges v by the bounds in the tags of s.
func (s setting) check(v reflect.Value) error {
	if s.enum != nil && !slices.Contains(s.enum, v.String()) {
		return fmt.Errorf("is not one of %s", strings.Join(s.enum, ", "))
	}
	for _, bound := range []struct {
		text    string
		outside func(v, bound int64) bool
		say     string
	}{
		{s.low, func(v, b int64) bool { return v < b }, "is less than %s"},
		{s.high, func(v, b int64) bool { return v > b }, "is more than %s"},
	} {
		if bound.text == "" {
			continue
		}
		limit := reflect.New(s.typ).Elem()
		if err := parse(limit, bound.text); err != nil {
			panic(fmt.Sprintf("config: bound %q of %s: %v", bound.text, s.path, err))
		}
		if bound.outside(v.Int(), limit.Int()) {
			return fmt.Errorf(bound.say, bound.text)
		}
	}
	return nil
}

// accepts says in a few words what values s takes, as a suggestion in errors.
func (s setting) accepts() string {
	switch {
	case s.enum != nil:
		return "one of " + strings.Join(s.enum, ", ")
	case s.low != "" && s.high != "":
		return "a value from " + s.low + " to " + s.high
	case s.low != "":
		return "a value of at least " + s.low
	case s.typ == reflect.TypeFor[Reserve]():
		return "auto, or a size such as 64MiB"
	case s.typ == reflect.TypeFor[Expiry]():
		return "never, or a time such as 7d"
	case s.typ.Kind() == reflect.Bool:
		return "true or false"
	default:
		return ""
	}
}
