package template_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/template"
)

// The expected outputs are those of Python's jinja2, set up as transformers sets it up.
func TestTemplate_AsPython(t *testing.T) {
	for src, text := range map[string]string{
		"{{ range(3) }}|{{ range(5)[1:3] }}|{{ {'a':1}.items() }}|{{ {'a':1}.keys() }}":                                       "range(0, 3)|range(1, 3)|dict_items([('a', 1)])|dict_keys(['a'])",
		"{% if [] | map('upper') %}yes{% endif %}{% set g = [1,2]|map('string') %}{{ g|first }}{{ g|list }}{{ g|list }}":      "yes1['2'][]",
		"{{ none|selectattr('a')|list }}{% set g = [1]|map('upper')|map('nofilter') %}":                                       "[]",
		"{{ '<'|safe + '<' }}{{ ('<'|e) + '>' }}{{ '%s'|safe % '<' }}{{ '<'|safe ~ '<' }}":                                    "<&lt;&lt;&gt;&lt;<<",
		"{{ {'a':'é'}|tojson(true) }}{{ {'a':1}|tojson(false, 1) }}":                                                          "{\"a\": \"\\u00e9\"}{\n \"a\": 1\n}",
		"{{ '{:>5}|{:05.1f}|{!r}|{a[0].b}|{:,}'.format('x', 2.25, 'y', 1234567, a=[{'b': 7}]) }}":                             "    x|002.2|'y'|7|1,234,567",
		"{{ '%(a)s %(b)05.2f' % {'a': 1, 'b': 2.5} }}{{ '%c%x%o%E%g' % (65, 255, 8, 1.5, 1e-7) }}":                            "1 02.50Aff101.500000E+001e-07",
		"{{ 5|round }}{{ 1250|round(-2) }}{{ 2.5|round }}{{ 3.14159|round(2) }}{{ 3.2|round(method='ceil') }}":                "512002.03.144.0",
		"{{ 'straße ﬁ'.upper() }}{{ 'ΑΣ Σ'.lower() }}{{ \"it's 1st\".title() }}{{ 'ß'.casefold() }}":                          "STRASSE FIας σIt'S 1Stss",
		"{% for i in [[1,[[2,[]]]],[3,[]]] recursive %}{{ loop.depth }}{{ i[0] }}{{ loop(i[1]) }};{% endfor %}":               "1122;;13;",
		"{% block a %}x{% set q = 1 %}{% endblock a %}{{ self.a() }}{{ q is defined }}":                                       "xxFalse",
		"{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q is defined }}":                                         "1False",
		"{% set c = cycler('a','b') %}{{ c.next() }}{{ c.current }}{% set j = joiner() %}{{ j() }}{{ j() }}":                  "ab, ",
		"{% for g in [{'k':2},{'k':1},{'k':2}]|groupby('k') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}":                 "1122",
		"{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, z=3) }}{{ f.arguments }}":                   "1(2,){'z': 3}('a',)",
		"{{ namespace(a=1) }}{{ ['a'|safe] }}{{ -7 // 2 }}{{ 2.5 is even }}{{ 'ab'|center(5) }}|":                             "<Namespace {'a': 1}>[Markup('a')]-4False  ab |",
		"a {% raw %}\n{{ x }}\n {% endraw %}\nb{% if false %}{{ 1|from_json }}{% endif %}":                                    "a \n{{ x }}\nb",
		"{{ 'a b c'.rsplit(none, 1) }}{{ 'banana'.find('a', 2) }}{{ 'x\ty'.expandtabs(4) }}{{ [3,1].sort() }}":                "['a b', 'c']3x   yNone",
		"{{ 'a long line of words'|wordwrap(8) }}{{ 1536|filesizeformat(true) }}{{ '<b>x</b>  y'|striptags }}":                "a long\nline of\nwords1.5 KiBx y",
		"{{ 12345678901234567890123 }}{{ [98765432109876543210] == [98765432109876543210] }}{{ 9999999999999999999|tojson }}": "12345678901234567890123True9999999999999999999",
		"\u00a0 {% if true %}x{% endif %}": "x",
	} {
		want(t, src, `{}`, text)
	}
}

func TestTemplate_RefusesAsPython(t *testing.T) {
	for _, src := range []string{
		"{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(b=2) }}",
		"{{ ','.join([1]) }}", "{{ u|int }}",
		"{% macro f() %}{% endmacro %}{% call f() %}{% endcall %}", "{{ [1]|map('string')|last }}",
		"{{ range(2)|tojson }}", "{{ '{}'.format() }}",
		"{{ [1]|map('nofilter')|list }}", "{% for a in [1] %}{{ loop([2]) }}{% endfor %}",
		"{% if true %}{{ 1|nofilter }}{% endif %}",
	} {
		_, err := render(t, src, `{}`, template.Options{})
		var failed *template.RenderError
		if !errors.As(err, &failed) {
			t.Errorf("%s: %v", src, err)
		}
	}
}

// chatTemplates resemble the templates that come with models.
func chatTemplates() []string {
	return []string{
		chatML,
		"{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content|trim }} [/INST]{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
		"{%- macro turn(m) -%}<|{{ m.role }}|>\n{{ m.content.strip() if m.content is string else m.content|tojson }}<|end|>\n{%- endmacro -%}" +
			"{%- set ns = namespace(text='') -%}{%- for m in messages -%}{%- set ns.text = ns.text ~ turn(m) -%}{%- endfor -%}{{ ns.text }}",
		"{% for m in messages %}{{ '<|%s|>' % m.role ~ '{}%'.format(m.content) }}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endif %}{% endfor %}",
	}
}

// No text from a user is parsed as template, and none counts as the template's own text.
func TestTemplate_FiveHundredInjections(t *testing.T) {
	bits := []string{"{{", "}}", "{%", "%}", "{#", "#}", "-", "<|im_end|>", "<|im_start|>system\n", "</s>", "[/INST]",
		"<think>", "</think>", "\n", " ", "'", `"`, `\`,
		"messages", "raise_exception('x')", "if true", "endfor", "{0}", "{x.__class__}", "%s", "%(a)s", "%", "{", "}",
		"''.__class__", "é", "\u2028", "\x00"}
	r := rand.New(rand.NewPCG(1, 2))
	for _, src := range chatTemplates() {
		tmpl, err := template.Parse(src)
		if err != nil {
			t.Fatal(err)
		}
		for range 125 {
			const mark = "\u0001user\u0001" // stands at each end of the text and nowhere else
			var b strings.Builder
			for range 1 + r.IntN(12) {
				b.WriteString(bits[r.IntN(len(bits))])
			}
			text := mark + b.String() + mark
			got, err := tmpl.Chat(t.Context(), template.ChatInput{
				Messages: []template.Message{{Role: "user", Content: text}}, BOS: "<s>", EOS: "</s>",
				AddGenerationPrompt: true,
			}, template.Options{})
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if !strings.Contains(got.Text, text) {
				t.Fatalf("%q became %q", text, got.Text)
			}
			own := []byte(got.Text)
			for _, d := range got.Data {
				for i := d[0]; i < d[1]; i++ {
					own[i] = '.'
				}
			}
			if i := strings.Index(got.Text, text); strings.Trim(string(own[i:i+len(text)]), ".") != "" {
				t.Fatalf("part of %q counts as the template's own: %q", text, own)
			}
		}
	}
}

// Two hundred hostile templates grow in different ways. Each ends by its budget.
func TestTemplate_TwoHundredBombs(t *testing.T) {
	grow := []string{"ns.s + ns.s", "ns.s ~ ns.s ~ 'x'", "ns.s * 3", "ns.s|replace('x', 'xxx')", "ns.s.join(ns.s)",
		"ns.s|indent(900, true)", "'%s%s' % (ns.s, ns.s)",
		"'{0}{0}{0}'.format(ns.s)", "ns.s|urlencode * 2", "(ns.s|list)|join('yy')", "ns.s|tojson + ns.s",
		"ns.s|center(99999999)", "'%900000s' % ns.s + ns.s",
		"'{:>900000}{}'.format(ns.s, ns.s)", "[ns.s, ns.s]|string", "ns.s|e + '<'|e * 9 + ns.s",
		"ns.s|wordwrap(1) + ns.s", "('\t' * 1000).expandtabs(900) + ns.s",
		"{'a': ns.s, 'b': ns.s}|tojson", "ns.s.replace('', ns.s[:9])"}
	around := []string{
		"{%% for i in range(99999) %%}{%% set ns.s = %s %%}{%% endfor %%}",
		"{%% macro f() %%}{%% set ns.s = %s %%}{{ ns.s }}{{ f() }}{{ f() }}{%% endmacro %%}{%% for i in range(99999) %%}{%% set ns.x = f() %%}{%% endfor %%}",
		"{%% for i in [1] recursive %%}{%% set ns.s = %s %%}{{ loop([1]) }}{{ loop([1]) }}{%% endfor %%}",
		"{%% block b %%}{%% set ns.s = %s %%}{{ ns.s }}{{ self.b() }}{{ self.b() }}{%% endblock %%}",
		"{%% for a in range(999) %%}{%% for b in range(999) %%}{%% set x %%}{{ %s }}{%% endset %%}{%% set ns.s = ns.s ~ x %%}{%% endfor %%}{%% endfor %%}",
		"{%% for i in range(99999) %%}{{ (%s)|length }}{%% set ns.l = ns.l + ns.l %%}{%% endfor %%}",
		"{%% for i in range(99999) %%}{%% filter upper %%}{{ %s }}{{ ns.s * i }}{%% endfilter %%}{%% endfor %%}",
		"{%% set c = cycler(ns.s, 'y') %%}{%% for i in range(99999) %%}{%% set ns.s = %s ~ c.next() %%}{%% endfor %%}",
		"{%% for i in range(99999) %%}{%% set ns.l = ns.l + [%s] %%}{{ ns.l|unique|sort|join }}{%% endfor %%}",
		"{%% macro f(a) %%}{{ a }}{%% call f(a ~ a) %%}{{ %s }}{%% endcall %%}{%% endmacro %%}{%% for i in range(99999) %%}{%% set ns.y = ns.l|map('string')|list %%}{{ f(ns.s) }}{%% endfor %%}",
	}
	slowest, total := time.Duration(0), 0
	for _, a := range around {
		for _, g := range grow {
			src := "{% set ns = namespace(s='" + strings.Repeat("x ", 50) + "', l=[1,2,3]) %}" + fmt.Sprintf(a, g)
			tmpl, err := template.Parse(src)
			if err != nil {
				t.Fatalf("%s: %v", src, err)
			}
			took, err := fastest(tmpl)
			slowest, total = max(slowest, took), total+1
			var budget *template.BudgetError
			var failed *template.RenderError
			if !errors.As(err, &budget) && !errors.As(err, &failed) {
				t.Errorf("%s: %v", src, err)
			}
			if took > bombTime {
				t.Errorf("%s: took %v", src, took)
			}
		}
	}
	t.Logf("%d bombs, the slowest %v", total, slowest)
}

// bombTime is the maximum time that a hostile template may take. The race detector multiplies
// it.
const bombTime = 50 * time.Millisecond * slowdown

// fastest renders a template up to five times until one rendering is within the time, because
// other processes use the machine too.
func fastest(tmpl *template.Template) (time.Duration, error) {
	runtime.LockOSThread() // the collector may work on other threads meanwhile
	defer runtime.UnlockOSThread()
	took, err := time.Duration(1<<62), error(nil)
	for range 5 {
		start := cputime.Thread()
		_, err = tmpl.Render(context.Background(), nil, template.Options{})
		if took = min(took, cputime.Thread()-start); took <= bombTime {
			break
		}
	}
	return took, err
}

func FuzzChat(f *testing.F) {
	f.Add(`{"role":"user","content":"hi"}`, `[{"type":"function"}]`, `{"enable_thinking":false}`)
	f.Add(`{"role":"assistant","content":null,"tool_calls":[{"function":{"arguments":{"a":1.5}}}]}`, `null`,
		`{"documents":[{"text":"x"}]}`)
	var tmpls []*template.Template
	for _, src := range chatTemplates() {
		tmpl, err := template.Parse(src + "{{ tools|tojson(indent=1) }}{{ documents }}{{ messages|string|upper }}")
		if err != nil {
			f.Fatal(err)
		}
		tmpls = append(tmpls, tmpl)
	}
	f.Fuzz(func(t *testing.T, message, tools, vars string) {
		for _, tmpl := range tmpls {
			r, err := tmpl.Chat(t.Context(), template.ChatInput{
				Messages: []template.Message{{JSON: []byte(message)}}, Tools: []byte(tools), Variables: []byte(vars),
			}, template.Options{Now: time.Now})
			end := 0
			for _, d := range r.Data {
				if err != nil || d[0] < end || d[1] <= d[0] || d[1] > len(r.Text) {
					t.Fatalf("ranges %v of %d bytes, %v", r.Data, len(r.Text), err)
				}
				end = d[1]
			}
		}
	})
}
