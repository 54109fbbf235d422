package config

import (
	"fmt"
	"io"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// Setting is the value of a flag and where it came from.
type Setting struct {
	Name   string
	Value  any    // a string, a number, a boolean or a list of strings
	Source string // such as "default", "flag", "environment LAMINA_HTTP" or "lamina.yaml:3"
	Secret bool   // the value is not shown
}

// Effective returns the settings of the command that was parsed, in the order of its help.
func Effective(c *kong.Context, f *File) []Setting {
	given := map[*kong.Flag]bool{}
	for _, p := range c.Path {
		if p.Flag != nil && !p.Resolved {
			given[p.Flag] = true
		}
	}
	var out []Setting
	for _, flag := range c.Flags() {
		if flag.Hidden || flag.Name == "help" || flag.Name == "config" {
			continue
		}
		value, ok := plain(flag.Target)
		if !ok {
			continue
		}
		s := Setting{Name: flag.Name, Value: value, Source: "default", Secret: secret(flag.Name)}
		env, set := fromEnv(flag)
		e, filed := f.find(c.Selected(), flag.Name)
		switch {
		case given[flag]:
			s.Source = "flag"
		case set:
			s.Source = "environment " + env
		case filed:
			s.Source = fmt.Sprintf("%s:%d", f.name, e.line)
		}
		if shown, secret := redacted(s.Value); secret {
			s.Value, s.Source = shown, s.Source+", without its password"
		}
		out = append(out, s)
	}
	return out
}

// redacted returns a value without the passwords of the URLs in it, and reports whether there was one.
func redacted(value any) (any, bool) {
	switch v := value.(type) {
	case string:
		u, err := url.Parse(v)
		if err != nil || u.User == nil {
			return v, false
		}
		if _, has := u.User.Password(); !has {
			u.User = url.UserPassword("", "") // a name alone is a token
		}
		return u.Redacted(), true
	case []any:
		out, found := make([]any, len(v)), false
		for i, item := range v {
			shown, secret := redacted(item)
			out[i], found = shown, found || secret
		}
		return out, found
	}
	return value, false
}

// secret reports whether a flag holds a secret.
func secret(name string) bool {
	return name == "api-key" || strings.HasSuffix(name, "-token") || strings.HasSuffix(name, "-secret") ||
		strings.HasSuffix(name, "-password")
}

// plain returns a value in the form in which YAML writes it. It reports false for a pointer to nothing, which stands
// for a flag that is not given.
func plain(v reflect.Value) (any, bool) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil, false
		}
		v = v.Elem()
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return d.String(), true
	}
	switch v.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return v.Interface(), true
	case reflect.String:
		return v.String(), true
	case reflect.Slice:
		list := []any{}
		for i := range v.Len() {
			item, _ := plain(v.Index(i))
			list = append(list, item)
		}
		return list, true
	default:
		return fmt.Sprint(v.Interface()), true
	}
}

// Write writes settings as a file that Read reads, below the names of their command. Comments say where values came
// from. Secrets are left out.
func Write(w io.Writer, command []string, settings []Setting) error {
	inner := &yaml.Node{Kind: yaml.MappingNode}
	for _, s := range settings {
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: s.Name}
		value := &yaml.Node{}
		if err := value.Encode(s.Value); err != nil {
			return err
		}
		if s.Secret {
			if s.Value != "" {
				inner.Content = append(inner.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: s.Name},
					&yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle,
						LineComment: "(not shown) " + s.Source})
			}
			continue
		}
		value.LineComment = s.Source
		if value.Kind == yaml.SequenceNode {
			value.Style = yaml.FlowStyle
		}
		inner.Content = append(inner.Content, key, value)
	}
	doc := inner
	for i := len(command) - 1; i >= 0; i-- {
		doc = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{
			{Kind: yaml.ScalarNode, Value: command[i]}, doc}}
	}
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(doc); err != nil {
		return err
	}
	return e.Close()
}
