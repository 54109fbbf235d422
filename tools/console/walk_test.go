//go:build unix

package console_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/chromedp"
)

// TestWalk_TheReadmeFromACloneToCurves does what README.md tells a new user, in a copy of the files that git knows:
// make up, a chat, an API key, a fine-tune that is started in the console, its curves, and a chat with what it has made.
// The commands, and the names of pages, buttons, choices and models, are those that the README has.
func TestWalk_TheReadmeFromACloneToCurves(t *testing.T) {
	open := start(t)
	for _, name := range []string{"bash", "curl", "git", "make"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	w := &walk{t: t, dir: clone(t)}
	blocks := w.blocks("First steps")
	if len(blocks) != 3 {
		t.Fatalf("README.md: %d blocks of commands in its first steps, want those of a key, of a request and of a text",
			len(blocks))
	}
	base := w.named("Fine-tune ([a-z0-9-]+) on a text")[1]
	web := w.named(`http://127\.0\.0\.1:[0-9]+`)[0]
	chat := w.named(`bin/lamina chat --router 127\.0\.0\.1:[0-9]+`)[0]
	_, router, _ := strings.Cut(chat, "--router ")

	up, stop := w.up("make up")
	// The ports that the README names may be in use here, so they are compared with the defaults alone.
	for _, addr := range []string{strings.TrimPrefix(web, "http://"), router} {
		if help := w.sh("bin/lamina up --help"); !strings.Contains(help, fmt.Sprintf("=%q", addr)) {
			t.Errorf("README.md: lamina up does not listen on %s without flags:\n%s", addr, help)
		}
	}
	w.sh(up.try)
	if said := w.sh("echo The prince | " + strings.Replace(chat, router, up.grpc, 1)); strings.TrimSpace(said) == "" {
		t.Errorf("%s says nothing", chat)
	}
	b := open(t, views()[0])
	b.open(up.url, "chat")
	w.chat(b, base)
	b.page("Keys")
	create, again, found := strings.Cut(blocks[0], "\n")
	if !found || !strings.HasPrefix(again, "make up ") {
		t.Fatalf("README.md: want the commands that make a key and start again, got %q", blocks[0])
	}
	b.sees(strings.TrimPrefix(create, "bin/lamina ")) // the page says how to begin, as the README does
	b.clean()
	stop()

	secret := strings.TrimSpace(w.sh(create))
	if !strings.HasPrefix(secret, "lamina_") || strings.ContainsAny(secret, " \n") {
		t.Fatalf("%s prints %q, want a key alone", create, secret)
	}
	up, stop = w.up(again)
	defer stop()
	request := strings.NewReplacer("lamina_...", secret, web, up.url).Replace(blocks[1])
	if out := w.sh(request); !strings.Contains(out, base) {
		t.Errorf("%s: %s", blocks[1], out)
	}
	w.sh(blocks[2])

	b = open(t, views()[0])
	asked := b.password(secret)
	b.open(up.url, "chat")
	if asked.Load() == 0 {
		t.Error("the browser is not asked for a password")
	}
	fine := w.named(`(?s)In the console, choose .*?\n\n`)[0]
	tell := regexp.MustCompile("[*\"`]([^*\"`]+)[*\"`]").FindAllStringSubmatch(fine, -1)
	if len(tell) != 6 {
		t.Fatalf("README.md: want a page, a button, a choice, a button, a state and a model in %q, got %q", fine, tell)
	}
	b.page(tell[0][1])
	b.click("button", tell[1][1])
	b.choice("dialog", "Begin with", tell[2][1])
	// What the README has a user do, but fewer steps.
	b.eval(`{ const a = document.querySelector("dialog textarea"), m = JSON.parse(a.value);
		Object.assign(m, {steps: 8, sequence_len: 32, evaluate_every: 4, checkpoint_every: 8});
		m.samples.every = 4;
		a.value = JSON.stringify(m); true }`, nil)
	b.click("dialog button", tell[3][1])
	b.until("curves", `document.querySelector(".chart .curve")?.getAttribute("points").split(" ").length >= 3`)
	b.until("the end of the run", fmt.Sprintf(`document.querySelector("tbody .state")?.innerText === %q`, tell[4][1]))
	tuned := tell[5][1]
	b.sees("Published as " + tuned)
	b.open(up.url, "chat")
	w.chat(b, tuned)

	b.page(w.named(`The console's page \*([A-Za-z]+)\*`)[1])
	b.click("button", "Make a key")
	b.fill("dialog input[name=name]", "laptop")
	b.click("dialog button", "Make")
	var second string
	b.until("the secret", `document.querySelector(".secret")?.textContent.startsWith("lamina_")`)
	b.eval(`document.querySelector(".secret").textContent`, &second)
	if out := w.sh(strings.ReplaceAll(request, secret, second)); !strings.Contains(out, tuned) {
		t.Errorf("the models for a key of the console: %s", out)
	}
	b.expect("404") // the metrics of a run before its first step
	b.expect("401") // before the password
	b.clean()
}

// clone copies the files that git knows, as they are here.
func clone(t *testing.T) string {
	t.Helper()
	root, dir := filepath.Join("..", ".."), t.TempDir()
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	names, err := list.Output()
	if err != nil {
		t.Skipf("the repository is no clone of git: %v", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(names), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed, but not committed
		}
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755)
		}
		var info os.FileInfo
		if err == nil {
			info, err = os.Stat(filepath.Join(root, name))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, info.Mode().Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// walk is a user in a clone.
type walk struct {
	t   *testing.T
	dir string
}

// section returns a section of the README.
func (w *walk) section(name string) string {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "README.md"))
	if err != nil {
		w.t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "\n## "+name+"\n")
	if !found {
		w.t.Fatalf("README.md has no section %s", name)
	}
	inside, _, _ := strings.Cut(after, "\n## ")
	return inside + "\n\n"
}

// blocks returns the blocks of commands in a section of the README.
func (w *walk) blocks(section string) (out []string) {
	w.t.Helper()
	for _, m := range regexp.MustCompile("(?s)```\n(.*?)\n```").FindAllStringSubmatch(w.section(section), -1) {
		out = append(out, m[1])
	}
	return out
}

// named returns the first match of a pattern, with its groups, in what the README says of the first steps.
func (w *walk) named(pattern string) []string {
	w.t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(w.section("First steps"))
	if m == nil {
		w.t.Fatalf("README.md: its first steps have no %s", pattern)
	}
	return m
}

func (w *walk) command(line string) *exec.Cmd {
	cmd := exec.Command("bash", "-ec", line)
	cmd.Dir = w.dir
	// The ports of the README may be in use, and the models of this machine are nobody's business.
	cmd.Env = append(os.Environ(), "LAMINA_HTTP=127.0.0.1:0", "LAMINA_GRPC=127.0.0.1:0",
		"LAMINA_STORE="+filepath.Join(w.dir, "store"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// sh runs a command and returns its output.
func (w *walk) sh(line string) string {
	w.t.Helper()
	cmd := w.command(line)
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil || len(out) == 0 && strings.HasPrefix(line, "curl") {
		w.t.Fatalf("%s: %v\n%s%s", line, err, out, &problems)
	}
	return string(out)
}

// started is what make up says.
type started struct{ url, grpc, try string }

// up runs a command that serves until it is interrupted, and returns what it says and a function that interrupts it.
func (w *walk) up(line string) (started, func()) {
	w.t.Helper()
	cmd := w.command(line)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	lines, drained := bufio.NewScanner(out), make(chan struct{})
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		late := time.AfterFunc(patience, func() {
			w.t.Errorf("%s has not ended %v after Ctrl-C", line, patience)
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		})
		defer late.Stop()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // as Ctrl-C does
		<-drained                                          // when nobody can write to it any more
		_ = cmd.Wait()                                     // make says that it was interrupted
	}
	w.t.Cleanup(stop)
	late := time.AfterFunc(limit, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // ends the lines
	defer late.Stop()
	var up started
	for up.try == "" && lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch value = strings.TrimSpace(value); name {
		case "console":
			up.url = value
		case "grpc":
			up.grpc = value
		case "try":
			up.try = value
		}
	}
	go func() { // nothing more is read, and nothing may block
		defer close(drained)
		for lines.Scan() {
			continue
		}
	}()
	if up.url == "" || up.grpc == "" || up.try == "" {
		w.t.Fatalf("%s ends before it has said where it listens and what to try", line)
	}
	return up, stop
}

// chat chooses a model and has it continue a text.
func (w *walk) chat(b *tab, model string) {
	b.t.Helper()
	b.until("the model "+model,
		fmt.Sprintf(`[...document.querySelector(".settings select")?.options || []].some((o) => o.value === %q)`,
			model))
	b.eval(fmt.Sprintf(`{ const s = document.querySelector(".settings select"); s.value = %q;
		s.dispatchEvent(new Event("change"));
		const i = document.querySelector(".settings input[max='16777216']"); i.value = 12;
		i.dispatchEvent(new Event("change")); true }`, model), nil)
	b.ask("The prince")
	b.idle()
	b.until("tokens of an answer",
		`/[1-9][0-9]* tokens? /.test(document.querySelector(".message.assistant .stats")?.innerText)`)
}

// page follows a link of the console's navigation.
func (b *tab) page(name string) {
	b.t.Helper()
	b.click("nav a", name)
	b.until("the page "+name, fmt.Sprintf(`document.querySelector("nav a[aria-current=page]")?.innerText === %q`, name))
}

// choice chooses the option that begins with a text, of the list with a label.
func (b *tab) choice(within, label, text string) {
	b.t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll(%q + " select")].find((s) => s.labels[0]?.innerText === %q)`,
		within, label)
	option := fmt.Sprintf(`[...(%s)?.options || []].find((o) => o.text.startsWith(%q))`, find, text)
	b.until("the choice "+text, option)
	b.eval(fmt.Sprintf(`{ const s = %s; s.value = (%s).value;
		s.dispatchEvent(new Event("change")); true }`, find, option), nil)
}

// password answers the browser's questions for a user and a password, and counts them.
func (b *tab) password(secret string) *atomic.Int64 {
	b.t.Helper()
	asked := new(atomic.Int64)
	do := func(a chromedp.Action) { go func() { _ = chromedp.Run(b.ctx, a) }() } // a listener must not wait
	chromedp.ListenTarget(b.ctx, func(event any) {
		switch e := event.(type) {
		case *fetch.EventRequestPaused:
			do(fetch.ContinueRequest(e.RequestID))
		case *fetch.EventAuthRequired:
			asked.Add(1)
			do(fetch.ContinueWithAuth(e.RequestID, &fetch.AuthChallengeResponse{Username: "anybody", Password: secret,
				Response: fetch.AuthChallengeResponseResponseProvideCredentials}))
		}
	})
	b.run(fetch.Enable().WithHandleAuthRequests(true))
	return asked
}
