package grammar_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// hostile writes a source that is meant to be expensive; n is its size.
type hostile struct {
	name  string
	kind  string
	write func(n int) string
}

func join(n int, sep string, one func(i int) string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = one(i)
	}
	return strings.Join(parts, sep)
}

func nested(n int, before, inside, after string) string {
	return strings.Repeat(before, n) + inside + strings.Repeat(after, n)
}

var hostiles = []hostile{
	{"groups", "gbnf", func(n int) string { return "root ::= " + nested(n, "(", `"a"`, ")*") }},
	{"choices", "gbnf", func(n int) string {
		return "root ::= " + join(10*n, "|", func(i int) string { return fmt.Sprintf(`"%d"`, i*7919) })
	}},
	{"counted", "gbnf", func(n int) string {
		return fmt.Sprintf(`root ::= ((([a-z]{0,%d} "x"?){0,%d}){1,%d} "y")*`, n, n, n)
	}},
	{"doubling", "gbnf", func(n int) string {
		return "root ::= r0\n" +
			join(n%60, "\n", func(i int) string { return fmt.Sprintf("r%d ::= r%d r%d", i, i+1, i+1) }) +
			fmt.Sprintf("\nr%d ::= \"a\" | \"\"", n%60)
	}},
	{"ambiguous", "gbnf", func(n int) string {
		return `root ::= "a" root root root | "a" root | "a" "a" root | "b" | "a"` +
			strings.Repeat(` | "a" root root`, n%40)
	}},
	{"ring", "gbnf", func(n int) string {
		return "root ::= r0\n" +
			join(n, "\n", func(i int) string {
				return fmt.Sprintf(`r%d ::= "a" r%d | "b" r%d | "c"`, i, (i+1)%n, (i*7+3)%n)
			})
	}},
	{"backwards", "gbnf", func(n int) string {
		return fmt.Sprintf("root ::= r%d\nr0 ::= \"x\"\n", n-1) +
			join(n-1, "\n", func(i int) string { return fmt.Sprintf(`r%d ::= r%d? r%d*`, i+1, i, i) })
	}},
	{"nullables", "gbnf", func(n int) string {
		return "root ::= (" + join(n, " ", func(i int) string { return fmt.Sprintf(`("%d"? "x"*)*`, i%10) }) + ")*"
	}},
	{"classes", "gbnf", func(n int) string {
		return "root ::= " + join(n, " ", func(i int) string {
			return fmt.Sprintf(`[^\U%08X-\U%08X\u%04X]`, 0x10000+i*97, 0x10000+i*113+50, 0x100+i)
		})
	}},
	{"members", "gbnf", func(n int) string {
		return `root ::= [` + join(8*n, "", func(i int) string { return fmt.Sprintf(`\U%08X`, 0x100+3*i) }) + `]{1,900}`
	}},
	{"long", "gbnf", func(n int) string { return `root ::= "` + strings.Repeat("é", 40*n) + `"` }},
	{"open", "gbnf", func(n int) string {
		return `root ::= "(" root ")" | "(" root "]" | "[" root ")" | [a-z]{` + fmt.Sprint(n) + `}`
	}},
	{"suffixes", "gbnf", func(n int) string {
		return "root ::= " + join(n, "|", func(i int) string { return fmt.Sprintf(`[ab]* "a" [ab]{%d}`, i) })
	}},

	{"bomb", "regex", func(n int) string { return `(.*a){` + fmt.Sprint(n) + `}` }},
	{"tail", "regex", func(n int) string { return `\b[ab]*a[ab]{` + fmt.Sprint(n%60) + `}\b` }},
	{"stars", "regex", func(n int) string { return nested(n%190, "(", "a", "*)*") }},
	{"repeats", "regex", func(n int) string { return nested(n%9, "(", "a?", fmt.Sprintf("{%d})", n)) + "b" }},
	{"properties", "regex", func(n int) string {
		return join(n%100, "", func(i int) string {
			return []string{`\p{L}`, `\P{Lu}`, `[^\p{Greek}\d]`, `(?i:\p{Han}|k)`}[i%4]
		}) + "$^"
	}},
	{"words", "regex", func(n int) string {
		return join(3*n, "|", func(i int) string { return fmt.Sprintf(`\bw%d\b`, i*31) })
	}},
	{"any", "regex", func(n int) string {
		return join(n, "|", func(i int) string { return fmt.Sprintf(`^.{%d}x.*y`, i) })
	}},

	{"deep", "schema", func(n int) string { return nested(n%250, `{"items":`, `{}`, `}`) }},
	{"wide", "schema", func(n int) string {
		return `{"type":"object","properties":{` +
			join(4*n, ",", func(i int) string { return fmt.Sprintf(`"p%d":{"type":"string","maxLength":%d}`, i, i) }) +
			`}}`
	}},
	{"enum", "schema", func(n int) string {
		return `{"enum":[` + join(20*n, ",", func(i int) string { return fmt.Sprintf(`"value %d"`, i*7919) }) + `]}`
	}},
	{"values", "schema", func(n int) string {
		return `{"enum":[` + join(n, ",",
			func(i int) string { return fmt.Sprintf(`{"k%d":[%d,{"x":"%d"}]}`, i, i, i) }) + `]}`
	}},
	{"product", "schema", func(n int) string {
		return `{"allOf":[` + join(n%40, ",", func(i int) string {
			return fmt.Sprintf(`{"anyOf":[{"required":["a%d"]},{"required":["b%d"]},{"minProperties":%d}]}`, i, i, i%3)
		}) + `]}`
	}},
	{"overlap", "schema", func(n int) string {
		return `{"oneOf":[` + join(n%60, ",", func(i int) string {
			return fmt.Sprintf(
				`{"type":"object","properties":{"a%d":{"type":"string"},"b":{"minimum":%d}},"required":["b"]}`,
				i,
				i,
			)
		}) + `]}`
	}},
	{"nots", "schema", func(n int) string {
		return nested(n%240, `{"not":`, `{"properties":{"a":{"type":"string"}},"required":["a"]}`, `}`)
	}},
	{"refs", "schema", func(n int) string {
		return `{"$ref":"#/$defs/d0","$defs":{` + join(n, ",", func(i int) string {
			return fmt.Sprintf(
				`"d%d":{"type":"object","properties":{"x":{"$ref":"#/$defs/d%d"},"y":{"$ref":"#/$defs/d%d"}}}`,
				i,
				(i+1)%n,
				(i*5+1)%n,
			)
		}) + `}}`
	}},
	{"spin", "schema", func(n int) string {
		return `{"$ref":"#/$defs/d0","$defs":{` +
			join(n, ",", func(i int) string {
				return fmt.Sprintf(`"d%d":{"allOf":[{"$ref":"#/$defs/d%d"}]}`, i, (i+1)%n)
			}) + `}}`
	}},
	{"meets", "schema", func(n int) string {
		return `{"$defs":{"a":{"type":"object","properties":{"x":{"$ref":"#/$defs/a"},"y":{"$ref":"#/$defs/b"}}},"b":{"type":"object","properties":{"x":{"allOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}]},"y":{"not":{"$ref":"#/$defs/a"}}}}},"allOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}]}`
	}},
	{"patterns", "schema", func(n int) string {
		return `{"patternProperties":{` +
			join(n%30, ",", func(i int) string {
				return fmt.Sprintf(`"[a-f]*%c[a-f]{%d}":{"type":"integer"}`, 'a'+i%6, i%12)
			}) + `}}`
	}},
	{"intersect", "schema", func(n int) string {
		return `{"type":"string","allOf":[` +
			join(n%12, ",", func(i int) string { return fmt.Sprintf(`{"pattern":"%c.{%d}z"}`, 'a'+i, i+2) }) + `]}`
	}},
	{"length", "schema", func(n int) string {
		return fmt.Sprintf(`{"type":"string","pattern":"^([a-z]+ ?)*$","minLength":%d,"maxLength":%d}`, n, 500*n)
	}},
	{"multiple", "schema", func(n int) string {
		return fmt.Sprintf(`{"type":"number","multipleOf":%d.%03d,"minimum":-%d,"maximum":1e%d}`,
			n%20, 1+n%999, n, n%50)
	}},
	{"digits", "schema", func(n int) string {
		return `{"type":"number","minimum":0.` + strings.Repeat("123456789", n%8) + `1,"not":{"enum":[` +
			join(n%20, ",", func(i int) string { return fmt.Sprintf("%d.5", i) }) + `,1]}}`
	}},
	{"unique", "schema", func(n int) string {
		return fmt.Sprintf(
			`{"type":"array","uniqueItems":true,"minItems":%d,"items":{"type":"string","pattern":"^[ab]{%d}$"}}`,
			n,
			n%40,
		)
	}},
	{"contains", "schema", func(n int) string {
		return fmt.Sprintf(
			`{"type":"array","items":{"type":"integer"},"minItems":%d,"maxItems":%d,"contains":{"minimum":5},"minContains":%d,"maxContains":%d}`,
			n%60,
			2*n,
			n%30,
			n,
		)
	}},
	{"existing", "schema", func(n int) string {
		return `{"type":"object","allOf":[` + join(n%9, ",", func(i int) string {
			return fmt.Sprintf(`{"not":{"patternProperties":{"^%c":{"type":"string"}}}}`, 'a'+i)
		}) + `],"maxProperties":` + fmt.Sprint(n) + `}`
	}},
	{"counted members", "schema", func(n int) string {
		return fmt.Sprintf(`{"type":"object","minProperties":%d,"maxProperties":%d,"properties":{`, n%100, n) +
			join(n%200, ",", func(i int) string { return fmt.Sprintf(`"p%d":{}`, i) }) + `}}`
	}},
	{"conditions", "schema", func(n int) string {
		return `{"allOf":[` + join(n%20, ",", func(i int) string {
			return fmt.Sprintf(
				`{"if":{"properties":{"k":{"const":%d}},"required":["k"]},"then":{"required":["a%d"]},"else":{"required":["b%d"]}}`,
				i,
				i,
				i,
			)
		}) + `]}`
	}},
}

// TestHostile_KeepsToItsBudget compiles hostile sources and follows texts for a few tokens.
// Each source takes at most 250 ms of CPU time and 32 MiB, or is refused by a typed error.
// LAMINA_HOSTILE sets their number; the promise is for 2,000.
func TestHostile_KeepsToItsBudget(t *testing.T) {
	count := len(hostiles)
	if text := os.Getenv("LAMINA_HOSTILE"); text != "" {
		fmt.Sscan(text, &count)
	}
	r := rand.New(rand.NewPCG(3, 4))
	_, v := randomVocabulary(t, r, 20_000)
	type spent struct {
		name  string
		took  time.Duration
		bytes uint64
		end   string
	}
	var all []spent
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range count {
		h := hostiles[i%len(hostiles)]
		n := 1 + r.IntN([]int{10, 100, 1000}[r.IntN(3)])
		source := h.write(n)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		began := cputime.Thread()
		c, end := attack(t, h.kind, source, v)
		took := cputime.Thread() - began
		runtime.ReadMemStats(&after)
		made := after.TotalAlloc - before.TotalAlloc
		runtime.GC()
		runtime.ReadMemStats(&after)
		held := after.HeapAlloc - min(after.HeapAlloc, before.HeapAlloc)
		runtime.KeepAlive(c)
		all = append(all, spent{fmt.Sprintf("%s %s %d (%d MiB made)", h.kind, h.name, n, made>>20), took, held, end})
		if made > 64<<20 {
			t.Logf("MADE %d MiB %s %s %d: %.60s", made>>20, h.kind, h.name, n, end)
		}
		if held > 32<<20 {
			t.Errorf("%s %s %d keeps %d MiB", h.kind, h.name, n, held>>20)
		}
		if took > 250*time.Millisecond*slack {
			t.Errorf("%s %s %d took %v", h.kind, h.name, n, took)
		}
	}
	slices.SortFunc(all, func(a, b spent) int { return int(b.took - a.took) })
	for _, s := range all[:min(len(all), 12)] {
		t.Logf("%v, keeps %d KiB: %s: %.80s", s.took.Round(time.Millisecond), s.bytes>>10, s.name, s.end)
	}
}

// slack is the time that other load on the machine may add.
const slack = 2

func attack(t *testing.T, kind, source string, v *grammar.Vocabulary) (c *grammar.Compiled, end string) {
	t.Helper()
	var g *grammar.Grammar
	var err error
	switch kind {
	case "gbnf":
		g, err = grammar.GBNF(source)
	case "regex":
		g, err = grammar.Regex(source)
	default:
		g, err = grammar.Schema([]byte(source))
	}
	if err == nil {
		c, err = grammar.Compile(g, v)
	}
	if err == nil {
		m := c.NewMatcher()
		mask := make([]uint64, v.Words())
		for range 3 {
			if err = m.Mask(mask); err != nil {
				break
			}
			next := m.Bytes()
			if len(next) == 0 {
				break
			}
			if err = m.AcceptBytes(next[:1]); err != nil {
				break
			}
		}
		m.Forced()
	}
	if err == nil {
		return c, "compiled"
	}
	var coder fault.Coder
	if !errors.As(err, &coder) || coder.FaultCode() != fault.Invalid {
		t.Errorf("%s %.60q: untyped error %v", kind, source, err)
	}
	return c, err.Error()
}
