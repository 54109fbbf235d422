package report

import (
	"html/template"
	"io"
	"slices"
	"strings"
)

// page is what the template shows.
type page struct {
	Title    string
	Runs     []pageRun
	Charts   []chart
	Figures  []figure
	Settings []figure
	Several  bool
}

// pageRun is a run in the legend, with its sample texts, the latest first.
type pageRun struct {
	Name    string
	Color   template.CSS
	Samples []Sample
	Events  []Event
}

// WriteHTML writes a page about one run, or a comparison of several.
func WriteHTML(w io.Writer, runs []*Run) error {
	p := page{Charts: charts(runs), Figures: figures(runs), Settings: settings(runs), Several: len(runs) > 1}
	var names []string
	for i, r := range runs {
		samples := slices.Clone(r.Samples)
		slices.Reverse(samples)
		color := template.CSS(colors()[i%len(colors())]) //nolint:gosec // a constant
		p.Runs = append(p.Runs, pageRun{r.Name, color, samples, r.Events})
		names = append(names, r.Name)
	}
	p.Title = strings.Join(names, ", ")
	return pageTemplate.Execute(w, p)
}

var pageTemplate = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{.Title}} - training report</title>
<style>
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --line: #d8dee4; --soft: #57606a }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --back: #0d1117; --line: #30363d; --soft: #8b949e } }
body { margin: 2rem auto; max-width: 1200px; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif }
body { color: var(--text); background: var(--back) }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-weight: 600 }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.grid { stroke: var(--line); stroke-width: 1 }
.key { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border-radius: 2px; vertical-align: -1px }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line) }
th, td { vertical-align: top }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere } tbody th { font-weight: 400; color: var(--soft) }
blockquote { margin: .5rem 0; padding-left: 1rem; border-left: 3px solid var(--line) }
blockquote { white-space: pre-wrap; overflow-wrap: anywhere }
small { color: var(--soft) }
</style>
</head>
<body>
<h1>{{.Title}}</h1>
<p>{{range .Runs}}<span class="key" style="background: {{.Color}}"></span>{{.Name}} &ensp; {{end}}</p>
<div class="charts">
{{range .Charts}}<figure><figcaption>{{.Title}}</figcaption>{{.SVG}}</figure>
{{end}}</div>
<h2>Figures</h2>
<table><thead><tr><th></th>{{range .Runs}}<th>{{.Name}}</th>{{end}}</tr></thead>
<tbody>{{range .Figures}}<tr><th>{{.Name}}</th>{{range .Values}}<td>{{.}}</td>{{end}}</tr>
{{end}}</tbody></table>
<h2>{{if .Several}}Fields in which the manifests differ{{else}}Manifest{{end}}</h2>
{{if .Settings}}<table><thead><tr><th></th>{{range .Runs}}<th>{{.Name}}</th>{{end}}</tr></thead>
<tbody>{{range .Settings}}<tr><th>{{.Name}}</th>{{range .Values}}<td>{{.}}</td>{{end}}</tr>
{{end}}</tbody></table>{{else}}<p>None.</p>{{end}}
{{range .Runs}}{{if .Events}}<h2>Events{{if $.Several}} of {{.Name}}{{end}}</h2>
<table><thead><tr><th>Step</th><th>Event</th><th>Replica</th><th>Address</th><th>Message</th><th>Time</th></tr></thead>
<tbody>{{range .Events}}<tr><td>{{.Step}}</td><td>{{.Kind}}</td><td>{{if .Replica}}{{.Replica}}{{end}}</td>
<td>{{.Address}}</td><td>{{.Message}}</td><td>{{.Time}}</td></tr>
{{end}}</tbody></table>{{end}}{{end}}
{{range .Runs}}{{if .Samples}}<h2>Sample texts{{if $.Several}} of {{.Name}}{{end}}</h2>
{{range .Samples}}<blockquote><small>step {{.Step}}</small>
<b>{{.Prompt}}</b>{{.Text}}</blockquote>
{{end}}{{end}}{{end}}</body>
</html>
`))
