// Package console_test drives the console in a headless Chromium: what a user does there, at two widths and in two
// themes, and what axe-core says about every page. It is a module of its own, so that Lamina depends on neither.
package console_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Machines may be slow, and nothing is faster than that on purpose: patience bounds each wait for a page, and limit a
// whole scenario.
const (
	patience = 5 * time.Minute
	limit    = 15 * time.Minute
)

// view is a size of the window and a theme.
type view struct {
	name          string
	width, height int64
	dark          bool
}

func views() []view {
	return []view{
		{"wide-light", 1280, 800, false}, {"wide-dark", 1280, 800, true},
		{"narrow-light", 390, 844, false}, {"narrow-dark", 390, 844, true},
	}
}

// two returns the views that differ most. Scenarios that take long run in these alone.
func two() []view { return []view{views()[0], views()[3]} }

// chromium returns the program, or skips the test.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	t.Skip("there is no Chromium: install Debian's package chromium, or name the program in CHROMIUM")
	return ""
}

// start returns a function that opens tabs of one browser. What a page stores belongs to its origin, so tabs of several
// rigs share nothing.
func start(t *testing.T) func(t *testing.T, v view) *tab {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium(t)), chromedp.NoSandbox,
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("force-color-profile", "srgb"),
		chromedp.WSURLReadTimeout(patience))
	alloc, endAlloc := chromedp.NewExecAllocator(context.Background(), options...)
	// Browsers send events that chromedp does not know yet, which it would log.
	root, endRoot := chromedp.NewContext(alloc, chromedp.WithErrorf(func(string, ...any) {}))
	if err := chromedp.Run(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endRoot()
		endAlloc()
	})
	return func(t *testing.T, v view) *tab {
		t.Helper()
		ctx, end := chromedp.NewContext(root)
		ctx, cancel := context.WithTimeout(ctx, limit)
		t.Cleanup(func() {
			cancel()
			end()
		})
		b := &tab{t: t, ctx: ctx, view: v}
		chromedp.ListenTarget(ctx, b.hear)
		theme := "light"
		if v.dark {
			theme = "dark"
		}
		b.run(chromedp.ActionFunc(func(ctx context.Context) error {
			if err := emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"},
			}).Do(ctx); err != nil {
				return err
			}
			return emulation.SetTimezoneOverride("UTC").Do(ctx)
		}), chromedp.EmulateViewport(v.width, v.height), chromedp.ActionFunc(func(ctx context.Context) error {
			if err := page.BringToFront().Do(ctx); err != nil { // pages in the background have no frames
				return err
			}
			return log.Enable().Do(ctx)
		}))
		return b
	}
}

// tab is a tab of the browser in a test. Its methods end the test if something is not there in time.
type tab struct {
	t    *testing.T
	ctx  context.Context
	view view

	mu       sync.Mutex
	problems []string // that the page has logged
	expected []string // parts of problems that are none
}

// hear collects what the page logs: exceptions, and what its policy has refused.
func (b *tab) hear(event any) {
	text := ""
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		text = e.ExceptionDetails.Error()
	case *log.EventEntryAdded:
		if e.Entry.Level == log.LevelError {
			text = e.Entry.Text + " " + e.Entry.URL
		}
	case *page.EventJavascriptDialogOpening:
		go func() { _ = chromedp.Run(b.ctx, page.HandleJavaScriptDialog(true)) }()
	}
	if text != "" {
		b.mu.Lock()
		b.problems = append(b.problems, text)
		b.mu.Unlock()
	}
}

// expect says that the page may log problems with a text.
func (b *tab) expect(part string) { b.expected = append(b.expected, part) }

// clean fails if the page has logged a problem that was not expected.
func (b *tab) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
next:
	for _, p := range b.problems {
		for _, e := range b.expected {
			if strings.Contains(p, e) {
				continue next
			}
		}
		b.t.Errorf("the page logs %s", p)
	}
}

func (b *tab) run(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// eval evaluates an expression.
func (b *tab) eval(expression string, out any) {
	b.t.Helper()
	b.run(chromedp.Evaluate(expression, out, func(p *runtime.EvaluateParams) *runtime.EvaluateParams {
		return p.WithAwaitPromise(true)
	}))
}

// until waits until an expression is true.
func (b *tab) until(what, expression string) {
	b.t.Helper()
	var yes bool
	for end := time.Now().Add(patience); ; {
		b.eval("Boolean("+expression+")", &yes)
		if yes {
			return
		}
		if time.Now().After(end) {
			var text string
			b.eval("document.body.innerText", &text)
			b.t.Fatalf("%s: not within %v; the page says:\n%s", what, patience, text)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-b.ctx.Done():
			b.t.Fatal(b.ctx.Err())
		}
	}
}

// sees waits until the page shows a text.
func (b *tab) sees(text string) {
	b.t.Helper()
	b.until("see "+text, fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

// click clicks the first visible element of a selector whose text or label contains text. It clicks what it finds at
// once, since the page may draw its elements anew at any time.
func (b *tab) click(selector, text string) {
	b.t.Helper()
	b.until("click "+text, fmt.Sprintf(`(() => {
		const e = [...document.querySelectorAll(%q)].find((e) => e.checkVisibility() && !e.disabled &&
			((e.innerText || "") + " " + (e.getAttribute("aria-label") || "")).includes(%q));
		if (e) { e.scrollIntoView({block: "center"}); e.click(); }
		return e;
	})()`, selector, text))
}

// fill sets the value of a field as a user does.
func (b *tab) fill(selector, value string) {
	b.t.Helper()
	b.until("fill "+selector, fmt.Sprintf("document.querySelector(%q)", selector))
	b.eval(fmt.Sprintf(`{ const e = document.querySelector(%q); e.focus(); e.value = %q;
		e.dispatchEvent(new Event("input", {bubbles: true})); e.dispatchEvent(new Event("change", {bubbles: true})); true }`,
		selector, value), nil)
}

// open opens a page of the console. chromedp's own Navigate waits for events that pages with open streams may not have.
func (b *tab) open(url, name string) {
	b.t.Helper()
	b.run(chromedp.ActionFunc(func(ctx context.Context) error {
		_, _, failed, _, err := page.Navigate(url + "/#/" + name).Do(ctx)
		if err == nil && failed != "" {
			err = errors.New(failed)
		}
		return err
	}))
	b.until("open "+name, fmt.Sprintf("document.querySelector('main.%s')", name))
}

// reload loads the page again.
func (b *tab) reload() {
	b.t.Helper()
	b.eval("window.before = true", nil)
	b.run(chromedp.ActionFunc(func(ctx context.Context) error { return page.Reload().Do(ctx) }))
	b.until("the page again", "!window.before && document.querySelector('main')?.className")
}

// press presses a key where the focus is.
func (b *tab) press(key string) {
	b.t.Helper()
	b.run(chromedp.KeyEvent(key))
}

// choose puts a file into a field.
func (b *tab) choose(selector, file string) {
	b.t.Helper()
	b.until("choose a file", fmt.Sprintf("document.querySelector(%q)", selector))
	b.run(chromedp.ActionFunc(func(ctx context.Context) error {
		found, _, err := runtime.Evaluate(fmt.Sprintf("document.querySelector(%q)", selector)).Do(ctx)
		if err != nil {
			return err
		}
		return dom.SetFileInputFiles([]string{file}).WithObjectID(found.ObjectID).Do(ctx)
	}))
}

// fits fails if the page is wider than the window.
func (b *tab) fits() {
	b.t.Helper()
	var wide []string
	b.eval(`document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("main *")]
		.filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, .chain, nav"))
		.slice(0, 5).map((e) => e.tagName + "." + e.className + " " + Math.round(e.getBoundingClientRect().right))`, &wide)
	if len(wide) > 0 {
		b.t.Errorf("the page is wider than the window: %q", wide)
	}
}

// violation is what axe-core has found.
type violation struct {
	ID, Impact, Help string
	Nodes            []struct {
		HTML           string
		FailureSummary string
	}
}

// axe fails for every serious finding of axe-core on the page as it is.
func (b *tab) axe(what string) {
	b.t.Helper()
	script, err := os.ReadFile("node_modules/axe-core/axe.min.js")
	if err != nil {
		b.t.Fatalf("read axe-core: %v: run npm ci in tools/console", err)
	}
	b.eval("if (typeof axe === 'undefined') {"+string(script)+"\n} true", nil)
	var text string
	b.eval(`axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]})
		.then((r) => JSON.stringify(r.violations))`, &text)
	var found []violation
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range found {
		for _, n := range v.Nodes {
			report := b.t.Logf
			if v.Impact == "serious" || v.Impact == "critical" {
				report = b.t.Errorf
			}
			report("%s, %s: axe-core: %s (%s): %s\n%s: %s", what, b.view.name, v.ID, v.Impact, v.Help, n.HTML,
				n.FailureSummary)
		}
	}
}

// pictures are the screenshots that are kept.
func pictures() []string {
	return []string{
		"chat-wide-light", "chat-tokens-wide-light", "mesh-wide-light", "mesh-failover-wide-dark", "mesh-narrow-light",
		"runs-wide-light", "runs-curves-wide-light", "runs-narrow-dark", "runs-start-narrow-dark", "models-wide-light",
		"keys-wide-light",
	}
}

// shoot takes a screenshot of the window, and stores it if LAMINA_SCREENSHOTS names a folder and it is one of pictures.
func (b *tab) shoot(name string) {
	b.t.Helper()
	dir := os.Getenv("LAMINA_SCREENSHOTS")
	var shot []byte
	b.run(chromedp.ActionFunc(func(ctx context.Context) error {
		if err := page.BringToFront().Do(ctx); err != nil { // a tab in the background draws nothing
			return err
		}
		var err error
		shot, err = page.CaptureScreenshot().Do(ctx)
		return err
	}))
	img, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		b.t.Fatal(err)
	}
	if dir == "" || !slices.Contains(pictures(), name+"-"+b.view.name) {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	var small bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, paletted(img)); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+"-"+b.view.name+".png"), small.Bytes(), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// paletted returns an image in 256 of its colours, mostly the frequent ones, which makes the file of a page a third as
// large. Pages have few colours but for the edges of letters and lines.
func paletted(img image.Image) image.Image {
	counts := map[color.Color]int{}
	bounds := img.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			counts[img.At(x, y)]++
		}
	}
	palette := color.Palette(slices.SortedFunc(maps.Keys(counts), func(a, b color.Color) int {
		return cmp.Or(counts[b]-counts[a], cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	}))
	// First one colour of each kind, so that small things in a colour of their own keep it.
	kinds := map[[3]uint32]bool{}
	var first, rest color.Palette
	for _, c := range palette {
		r, g, b, _ := c.RGBA()
		if kind := [3]uint32{r >> 13, g >> 13, b >> 13}; !kinds[kind] {
			kinds[kind] = true
			first = append(first, c)
		} else {
			rest = append(rest, c)
		}
	}
	palette = append(first, rest...)
	palette = palette[:min(256, len(palette))]
	nearest := map[color.Color]uint8{}
	for c := range counts {
		nearest[c] = uint8(palette.Index(c))
	}
	out := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			out.SetColorIndex(x, y, nearest[img.At(x, y)])
		}
	}
	return out
}

// downloads allows downloads into a folder, which it returns.
func (b *tab) downloads() string {
	b.t.Helper()
	dir := b.t.TempDir()
	b.run(browser.SetDownloadBehavior(browser.SetDownloadBehaviorBehaviorAllow).WithDownloadPath(dir))
	return dir
}
