package adapter

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// For returns the rank of a module's adapter, and the factor of its product.
func (c *Config) For(module string) (rank int, scale float64) {
	find := func(list []Override, otherwise float64) float64 {
		for _, o := range list {
			if re, err := compile(endsWith(o.Match)); err == nil && re.MatchString(module) {
				return o.Value
			}
		}
		return otherwise
	}
	rank = int(find(c.Ranks, float64(c.Rank)))
	scale = find(c.Alphas, c.Alpha) / float64(rank)
	if c.RSLoRA {
		scale = find(c.Alphas, c.Alpha) / math.Sqrt(float64(rank))
	}
	return rank, scale
}

// Target is a module of a model that an adapter may be for.
type Target struct {
	Module string
	Head   bool // the model's output, which AllLinear leaves out
	Embeds bool // a lookup, which AllLinear leaves out
}

// matches reports whether the names or the regular expression match a module.
func (p *Pattern) matches(module string) (exact, found bool) {
	if p.Regexp != "" {
		re, err := compile("^(?:" + p.Regexp + ")$")
		return true, err == nil && re.MatchString(module)
	}
	for _, n := range p.Names {
		if n == module {
			return true, true
		}
	}
	return false, slices.ContainsFunc(p.Names, func(n string) bool { return strings.HasSuffix(module, "."+n) })
}

// Saves reports whether modules_to_save lists a module or one that it is in. As in PEFT the end of a name is enough:
// "norm" stands for input_layernorm, too.
func (c *Config) Saves(module string) bool {
	return c.listed(module, func(name, n string) bool { return strings.HasSuffix(name, n) })
}

// listed reports whether an element of modules_to_save matches a module or one that it is in.
func (c *Config) listed(module string, match func(name, n string) bool) bool {
	for end := 0; end < len(module) && len(c.Save) > 0; {
		if next := strings.IndexByte(module[end+1:], '.'); next >= 0 {
			end += 1 + next
		} else {
			end = len(module)
		}
		if slices.ContainsFunc(c.Save, func(n string) bool { return n != "" && match(module[:end], n) }) {
			return true
		}
	}
	return false
}

// Selects reports whether the adapter is for a module, as PEFT decides it: by the ends of names or a regular
// expression, then by layers. Layers do not matter for a module that is named in full or by an expression.
func (c *Config) Selects(t Target) bool {
	saved := c.listed(t.Module, func(name, n string) bool { return name == n || strings.HasSuffix(name, "."+n) })
	if _, found := c.Exclude.matches(t.Module); found && !c.Exclude.Empty() || saved {
		return false
	}
	if c.Targets.Regexp == AllLinear {
		return !t.Head && !t.Embeds && c.layer(t.Module)
	}
	exact, found := c.Targets.matches(t.Module)
	return found && (exact || c.layer(t.Module))
}

// layer reports whether a module is in one of the layers to transform.
func (c *Config) layer(module string) bool {
	if len(c.Layers) == 0 {
		return true
	}
	patterns := c.LayersPattern
	if len(patterns) == 0 {
		patterns = []string{`[^.]*`}
	}
	for _, p := range patterns {
		re, err := compile(layerOf(p))
		if err != nil {
			continue
		}
		if m := re.FindStringSubmatch(module); m != nil {
			n, err := strconv.Atoi(m[1])
			return err == nil && slices.Contains(c.Layers, n)
		}
	}
	return false
}

func layerOf(list string) string { return `^.*\.` + list + `\.(\d+)\.` }
