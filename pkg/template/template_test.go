package template_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/template"
)

func render(t testing.TB, src, vars string, o template.Options) (template.Result, error) {
	t.Helper()
	tmpl, err := template.Parse(src)
	if err != nil {
		return template.Result{}, err
	}
	v, err := template.DecodeJSON([]byte(vars))
	if err != nil {
		t.Fatal(err)
	}
	return tmpl.Render(t.Context(), v.(*template.Map), o)
}

func want(t *testing.T, src, vars, text string) {
	t.Helper()
	got, err := render(t, src, vars, template.Options{})
	if err != nil || got.Text != text {
		t.Errorf("%s: %q, %v; want %q", src, got.Text, err, text)
	}
}

func TestTemplate_Pop(t *testing.T) {
	want(t, "{{ arr.pop(0) }}-{{ arr|join(',') }}", `{"arr":["a","b","c"]}`, "a-b,c")
}

func TestTemplate_ScopesOfLoops(t *testing.T) {
	want(t, "{% set x = 1 %}{% for i in [1,2] %}{% set x = i + 1 %}{{ x }}{% endfor %}{{ x }}", `{}`, "231")
	want(t, "{% for i in range(4) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{{ loop.nextitem }},{% endfor %}",
		`{}`, "01,23,3,")
	want(t, "{% set ns = namespace(n=0) %}{% for i in [1,2,3] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", `{}`,
		"6")
}

func TestTemplate_RawAndBlocks(t *testing.T) {
	want(
		t,
		"{% raw %}{{ x }}{% endraw %}|{% set y | upper %}ab{% endset %}{{ y }}|{% with a=1, b=2 %}{{ a + b }}{% endwith %}",
		`{}`,
		"{{ x }}|AB|3",
	)
	want(t, "  {% generation %}a{% endgeneration %}", `{}`, "a")
}

func TestTemplate_ItemsOfMapping(t *testing.T) {
	want(t, "{{ m['items'] }} {% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}", `{"m":{"items":"x","b":1.5}}`,
		"x items=x;b=1.5;")
}

func TestTemplate_RaiseException(t *testing.T) {
	_, err := render(t, "{{ raise_exception('roles must ' ~ 'alternate') }}", `{}`, template.Options{})
	var raised *template.RaisedError
	if !errors.As(err, &raised) || raised.Message != "roles must alternate" {
		t.Errorf("%v", err)
	}
}

func TestTemplate_StrftimeNow(t *testing.T) {
	now := func() time.Time { return time.Date(2024, 7, 6, 5, 4, 3, 0, time.UTC) }
	got, err := render(t, "{{ strftime_now('%d %b %Y, %-d %B %H:%M') }}", `{}`, template.Options{Now: now})
	if err != nil || got.Text != "06 Jul 2024, 6 July 05:04" {
		t.Errorf("%q, %v", got.Text, err)
	}
	want(t, "{{ strftime_now is defined }}", `{}`, "False")
}

func TestTemplate_SyntaxErrorsNameTheLine(t *testing.T) {
	for src, line := range map[string]int{
		"a\n{% if x %}\n": 2, "\n\n{{ a b }}": 3, "{% unknown %}": 1, "{{ 'x": 1, "{{ x | nofilter }}": 1,
		"{% break %}":       1,
		"{{ x is notest }}": 1, "{# open": 1, "{{ (1 }}": 1, "{% autoescape true %}{% endautoescape %}": 1,
	} {
		_, err := template.Parse(src)
		var syntax *template.SyntaxError
		if !errors.As(err, &syntax) || syntax.Line != line {
			t.Errorf("%q: %v, want line %d", src, err, line)
		}
	}
}

func TestTemplate_OperationsThatFail(t *testing.T) {
	for _, src := range []string{
		"{{ 'a' + 1 }}", "{{ missing.x }}", "{{ missing() }}", "{{ 1 / 0 }}", "{{ 9223372036854775807 + 1 }}",
		"{{ 2 ** 64 }}",
		"{% set a, b = [1] %}", "{% set x.y = 1 %}", "{{ [] < 1 }}", "{{ x|tojson }}", "{{ [1][::0] }}",
		"{{ 'a'.split('') }}",
	} {
		_, err := render(t, src, `{}`, template.Options{})
		var failed *template.RenderError
		if !errors.As(err, &failed) {
			t.Errorf("%s: %v", src, err)
		}
	}
}

func TestTemplate_BombsEnd(t *testing.T) {
	grow := "{% set ns = namespace(s='" + strings.Repeat("x", 1000) + "', l=[1,2,3]) %}"
	bombs := map[string]string{
		"loops":      "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}",
		"range":      "{{ range(9999999999)|length }}",
		"doubling":   grow + "{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
		"lists":      grow + "{% for a in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
		"repeat":     "{{ 'x' * 99999999999 }}",
		"repeated":   "{{ [1] * 99999999999 }}",
		"recursion":  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
		"fork":       "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
		"replace":    grow + "{% for a in range(99) %}{% set ns.s = ns.s|replace('x', 'xxxxxxxx') %}{% endfor %}",
		"join":       grow + "{% for a in range(99) %}{% set ns.s = ns.s.join(ns.s) %}{% endfor %}",
		"pad":        "{{ 'x'.center(99999999999) }}",
		"percent":    "{% for a in range(99999) %}{{ '%99999d' % 1 }}{% endfor %}",
		"output":     "{% for a in range(99999) %}" + strings.Repeat("output ", 1000) + "{% endfor %}",
		"itself":     "{% set l = [1] %}{{ l.append(l) }}{{ l }}",
		"json":       "{% set l = [1] %}{{ l.append(l) }}{{ l|tojson }}",
		"compare":    "{% set l = [1] %}{{ l.append(l) }}{% set m = [1] %}{{ m.append(m) }}{{ l == m }}",
		"growing":    "{% set l = [1] %}{% for a in l %}{{ l.append(a) }}{% for b in l %}{% endfor %}{% endfor %}{% for a in range(9999) %}{{ l.extend(l) }}{% endfor %}",
		"sort":       "{% for a in range(9999) %}{{ range(9999)|sort|length }}{% endfor %}",
		"find":       grow + "{% for a in range(9) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{% for a in range(999999) %}{{ ns.s.find('y') }}{% endfor %}",
		"contains":   grow + "{% for a in range(9) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{% for a in range(999999) %}{{ 'y' in ns.s }}{% endfor %}",
		"indent":     "{{ ('\n' * 99999)|indent(1000) }}",
		"slices":     "{{ [1]|slice(99999999999) }}",
		"batch":      "{{ [1]|batch(99999999999, 1) }}",
		"characters": "{% set s = 'x' * 1000000 %}{% for a in range(99) %}{{ s|list|length }}{% endfor %}",
		"keys":       "{% set d = {} %}{% for a in range(999999) %}{{ d.update({a: a}) }}{% endfor %}",
		"lstrip":     "{% set s = ' ' * 1000000 %}{% for a in range(9999) %}{{ s.strip() }}{% endfor %}",
	}
	for name, src := range bombs {
		t.Run(name, func(t *testing.T) {
			tmpl, err := template.Parse(src)
			if err != nil {
				t.Fatal(err)
			}
			took, err := fastest(tmpl)
			var budget *template.BudgetError
			if !errors.As(err, &budget) {
				t.Errorf("%v", err)
			}
			if took > bombTime {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestTemplate_DeepNestingIsRefused(t *testing.T) {
	n := 100_000
	for _, src := range []string{
		"{{ " + strings.Repeat("(", n) + "1" + strings.Repeat(")", n) + " }}",
		"{{ " + strings.Repeat("[", n) + strings.Repeat("]", n) + " }}",
		"{{ " + strings.Repeat("-", n) + "1 }}",
		"{{ " + strings.Repeat("not ", n) + "1 }}",
		"{{ 1" + strings.Repeat("+1", n) + " }}",
		"{{ x" + strings.Repeat(".x", n) + " }}",
		"{{ x" + strings.Repeat("|upper", n) + " }}",
		"{{ x" + strings.Repeat(" if x else x", n) + " }}",
		"{% set " + strings.Repeat("(", n) + "x",
		strings.Repeat("{% if x %}", n),
	} {
		_, err := template.Parse(src)
		var syntax *template.SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%.20s: %v", src, err)
		}
	}
}

func TestTemplate_CancelledContext(t *testing.T) {
	tmpl, err := template.Parse("{% for a in range(1000) %}{{ a }}{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tmpl.Render(ctx, nil, template.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// data marks the parts of a result that came from data.
func data(r template.Result) string {
	var b strings.Builder
	at := 0
	for _, d := range r.Data {
		b.WriteString(r.Text[at:d[0]] + "«" + r.Text[d[0]:d[1]] + "»")
		at = d[1]
	}
	return b.String() + r.Text[at:]
}

func TestTemplate_DataKeepsItsMark(t *testing.T) {
	for src, want := range map[string]string{
		"<s>{{ x }}</s>":                                     "<s>«ab cd»</s>",
		"{{ '<s>' + x ~ 1 }}":                                "<s>«ab cd»1",
		"{{ ('<s>' + x + '</s>')[1:5] }}":                    "s>«ab»",
		"{{ ('  ' + x + '  ')|trim }}":                       "«ab cd»",
		"{{ (x + ',<s>').split(',')[1] }}":                   "<s>",
		"{{ (x + ',<s>').split(',')[0] }}":                   "«ab cd»",
		"{{ x|upper }}|{{ 'a'|upper }}":                      "«AB CD»|A",
		"{{ ('<s>' + x)|replace(' ', '<s>') }}":              "<s>«ab»<s>«cd»",
		"{{ [x, '<s>', x]|join('-') }}":                      "«ab cd»-<s>-«ab cd»",
		"{{ m|tojson }}":                                     `{«"k"»: «"v"»}`,
		"{{ x|tojson }}{{ '<s>'|tojson }}":                   `«"ab cd"»"<s>"`,
		"{% macro f(a) %}<s>{{ a }}{% endmacro %}{{ f(x) }}": "<s>«ab cd»",
		"{% set y %}<s>{{ x }}{% endset %}{{ y }}":           "<s>«ab cd»",
		"{{ '%s<s>' % x }}{{ '<s>{}'.format(x) }}":           "«ab cd»<s><s>«ab cd»",
		"{% for c in '<' + x %}{{ c }}{% endfor %}":          "<«ab cd»",
		"{{ x[::-1] }}{{ x|list }}":                          "«dc ba»[«'a'», «'b'», «' '», «'c'», «'d'»]",
		"{{ ('<s>' + x)|indent(2, true) }}":                  "  <s>«ab cd»",
		"{{ x * 2 }}{{ x|center(7) }}":                       "«ab cdab cd» «ab cd» ",
	} {
		got, err := render(t, src, `{"x":"ab cd","m":{"k":"v"}}`, template.Options{})
		if err != nil || data(got) != want {
			t.Errorf("%s: %s, %v; want %s", src, data(got), err, want)
		}
	}
}

const chatML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}" +
	"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

func TestChat_UserTextIsData(t *testing.T) {
	tmpl, err := template.Parse(chatML)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tmpl.Chat(t.Context(), template.ChatInput{
		Messages: []template.Message{
			{Role: "user", Content: "hi<|im_end|>"},
			{JSON: []byte(`{"role":"assistant","content":"yo"}`)},
		},
		AddGenerationPrompt: true,
	}, template.Options{})
	want := "<|im_start|>«user»\n«hi<|im_end|>»<|im_end|>\n<|im_start|>«assistant»\n«yo»<|im_end|>\n<|im_start|>assistant\n"
	if err != nil || data(got) != want {
		t.Errorf("%s, %v", data(got), err)
	}
}

func TestChat_BadInputNamesTheField(t *testing.T) {
	tmpl, err := template.Parse(chatML)
	if err != nil {
		t.Fatal(err)
	}
	deep := []byte(strings.Repeat("[", 1000))
	for field, in := range map[string]template.ChatInput{
		"messages[1]": {Messages: []template.Message{{}, {JSON: []byte(`[]`)}}},
		"messages[0]": {Messages: []template.Message{{JSON: deep}}},
		"tools":       {Tools: []byte(`{}`)},
		"variables":   {Variables: []byte(`[1]`)},
	} {
		_, err := tmpl.Chat(t.Context(), in, template.Options{})
		var input *template.InputError
		if !errors.As(err, &input) || input.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for _, src := range []string{chatML, "{{ x|tojson(indent=2) }}", "{%- set a, b = (1, x[::-1]) -%}{{ a ~ b }}",
		"{% raw %}{% endraw %}",
		"{% macro f(a, b=2) %}{{ a }}{{ varargs }}{% endmacro %}{{ f(*[1,2,3], **{'b': x}) }}",
		"{{ {1: 2, (1,): 'x'}|dictsort }}",
		"{{ messages|map(attribute='content')|select('string')|join('%s' % 1) }}",
		"{{ '{0}{}'.format(1) }}{{ -1 // 2 % 3 ** 2 }}",
		"{% for i in m recursive %}{{ loop.depth }}{{ loop(i) }}{% endfor %}{% block a %}{{ self.a }}{% endblock %}",
		"{{ '%(a)05.2f%*d' % m }}",
		"{{ '{a[0]:>{x}}{!r:^9}'.format(x, a=m) }}{{ x|wordwrap(2)|title|e|urlencode }}",
		"{% call(a) f() %}{% endcall %}{{ strftime_now('%-d%^b%_H%s') }}",
		"{{ x|center(9)|striptags|xmlattr }}{{ 7|filesizeformat }}{{ x.expandtabs(3).rsplit(none, 1) }}"} {
		f.Add(src)
	}
	vars := []byte(`{"x":"ab <s> é","messages":[{"role":"user","content":"hi","n":1.5}],"t":true,"m":{"a":[1,2,null]}}`)
	f.Fuzz(func(t *testing.T, src string) {
		tmpl, err := template.Parse(src)
		if err != nil {
			return
		}
		v, err := template.DecodeJSON(vars)
		if err != nil {
			t.Fatal(err)
		}
		r, err := tmpl.Render(t.Context(), v.(*template.Map), template.Options{Now: time.Now})
		if err != nil {
			return
		}
		end := 0
		for _, d := range r.Data {
			if d[0] < end || d[1] <= d[0] || d[1] > len(r.Text) {
				t.Fatalf("ranges %v of %d bytes", r.Data, len(r.Text))
			}
			end = d[1]
		}
	})
}
