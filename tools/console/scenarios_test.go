package console_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
)

const answerText = "<think>The user wants a loop over layers. A table helps.</think>" +
	"## Splitting a model\n\nA stage holds a **span** of layers, and the `router` never sees a hidden state:\n\n" +
	"| stage | layers | KV pages |\n|:--|--:|--:|\n| 0 | 0–11 | 512 |\n| 1 | 12–21 | 512 |\n\n" +
	"```go\nfor _, layer := range stage.Layers {\n\thidden = layer.Forward(hidden, positions)\n}\n```\n\n" +
	"1. Activations go forward, as $h_{l+1} = f(h_l)$.\n2. Only the *last* stage computes logits.\n\n" +
	"<script>alert(1)</script> stays text, and [this](javascript:alert(1)) is no link."

// each runs a scenario in some views, each in a tab of its own.
func each(t *testing.T, in []view, run func(t *testing.T, r *rig, b *tab)) {
	t.Helper()
	open := start(t)
	for _, v := range in {
		t.Run(v.name, func(t *testing.T) {
			r := newRig(t)
			b := open(t, v)
			run(t, r, b)
			b.fits()
			b.clean()
		})
	}
}

// ask sends a question.
func (b *tab) ask(text string) {
	b.t.Helper()
	b.until("have a model", "document.querySelector('.settings select')?.value")
	b.fill("#text", text)
	b.press(kb.Enter)
	b.eval(`document.getElementById("text").value = "", true`, nil) // the key comes with a character of its own
}

// idle waits until no answer is being written.
func (b *tab) idle() {
	b.t.Helper()
	b.until("the answer to end", "document.querySelector('.message.assistant .tools') && !document.querySelector('.message.writing')")
}

func TestChat_AnswersAreShownAndBranched(t *testing.T) {
	each(t, two(), func(t *testing.T, r *rig, b *tab) {
		r.answer = answerText
		b.open(r.URL, "chat")
		b.sees("What do you want to know?")
		b.axe("an empty chat")
		b.shoot("chat-empty")
		b.ask("How is a model split?")
		b.idle()
		b.sees("42 prompt tokens, 16 from the cache")
		b.until("Markdown", `document.querySelector(".message.assistant table td.right") && document.querySelector(".message .code pre code")?.textContent.includes("range stage.Layers")
			&& document.querySelector(".message.assistant strong") && document.querySelector(".message code.maths")
			&& !document.querySelector(".message script") && !document.querySelector(".message a[href^=javascript]")`)
		b.until("folded reasoning", `!document.querySelector(".message .fold").open && document.querySelector(".message .fold").textContent.includes("A table helps")`)
		b.axe("an answer")
		b.shoot("chat")

		b.click("button", "Tokens")
		b.until("tokens", `document.querySelectorAll(".token").length > 20`)
		b.until("probabilities", `(() => { const t = document.querySelectorAll(".token")[4];
			t.blur(); t.focus({preventScroll: true}); // again, as a scroll that is not over hides them
			return document.querySelectorAll("[role=tooltip] .row").length === 3; })()`)
		b.axe("tokens")
		b.shoot("chat-tokens")
		b.click("button", "Tokens")

		r.answer = "Another answer."
		b.click("button", "Regenerate")
		b.sees("Another answer.")
		b.idle()
		b.sees("2 of 2")
		b.click("button", "Earlier version")
		b.sees("Splitting a model")

		b.click("button", "Edit")
		b.fill(".message textarea", "And how is it trained?")
		r.answer = "By gradients."
		b.click("button", "Send as a new branch")
		b.sees("By gradients.")
		b.idle()
		b.until("a branch of the question", `document.querySelector(".message.user .branches")?.innerText.includes("2 of 2")`)
		r.mu.Lock()
		last := r.asked[len(r.asked)-1]
		r.mu.Unlock()
		if n := len(last.GetMessages()); n != 1 || last.GetMessages()[0].GetContent() != "And how is it trained?" {
			t.Errorf("the request of the branch has %d messages: %v", n, last.GetMessages())
		}
		b.reload()
		b.until("the stored conversation", `document.querySelector(".conversations .open")?.textContent === "How is a model split?"`)
	})
}

func TestChat_StopSystemPromptAndParameters(t *testing.T) {
	r := newRig(t)
	b := start(t)(t, views()[0])
	r.block = true
	b.open(r.URL, "chat")
	b.fill(".settings textarea", "You are terse.")
	b.fill(".settings input[step='1'][max='9007199254740991']", "7")
	b.ask("Say something")
	b.until("the first words", `document.querySelector(".message.assistant")?.innerText.includes("Hello.")`)
	b.press(kb.Escape)
	b.sees("Stopped.")
	b.idle()
	r.mu.Lock()
	asked := r.asked[0]
	r.mu.Unlock()
	if m := asked.GetMessages(); len(m) != 2 || m[0].GetRole() != "system" || m[0].GetContent() != "You are terse." {
		t.Errorf("the messages are %v", m)
	}
	if asked.GetSampling().GetSeed() != 7 || asked.GetMaxTokens() != 512 || asked.GetTopLogprobs() != 5 {
		t.Errorf("the request is %v", asked)
	}
	b.clean()
}

func TestChat_ToolCallsAreFoldedAndAnswered(t *testing.T) {
	r := newRig(t)
	b := start(t)(t, views()[0])
	r.calls, r.answer = true, "It is cold in Kazan."
	b.open(r.URL, "chat")
	b.click(".settings summary", "More")
	b.eval(`[...document.querySelectorAll(".settings .field")].find((f) => f.innerText.startsWith("Tools")).querySelector("textarea").dataset.test = "tools", true`, nil)
	b.fill("[data-test=tools]", `[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]`)
	b.ask("Weather in Kazan?")
	b.idle()
	b.sees("Calls weather")
	b.until("arguments", `document.querySelector(".calls .fold pre")?.textContent.includes('"city": "Kazan"')`)
	b.axe("a tool call")
	b.fill(".results textarea", `{"celsius": -9}`)
	b.click("button", "Send the results")
	b.sees("It is cold in Kazan.")
	b.idle()
	r.mu.Lock()
	last := r.asked[len(r.asked)-1]
	r.mu.Unlock()
	roles := []string{}
	for _, m := range last.GetMessages() {
		roles = append(roles, m.GetRole())
	}
	if strings.Join(roles, " ") != "user assistant tool" || !strings.Contains(last.GetMessages()[1].GetJson(), "weather") {
		t.Errorf("the messages are %v", last.GetMessages())
	}
	b.clean()
}

func TestChat_ExportAndImport(t *testing.T) {
	r := newRig(t)
	open := start(t)
	b := open(t, views()[0])
	dir := b.downloads()
	b.open(r.URL, "chat")
	b.ask("Keep this")
	b.idle()
	b.click("button", "Export all")
	name := filepath.Join(dir, "lamina-conversations.json")
	var text []byte
	for end := time.Now().Add(patience); ; {
		var err error
		if text, err = os.ReadFile(name); err == nil && json.Valid(text) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the download: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	other := open(t, views()[0])
	other.open(newRig(t).URL, "chat")
	other.sees("kept in this browser alone")
	other.choose(".side.list input[type=file]", name)
	other.until("the imported conversation", `document.querySelector(".message.user")?.innerText.includes("Keep this")`)
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte(`{"format":"lamina-conversations","version":1,"conversations":[{"messages":{"a":{"id":"a","parent":"a","role":"user","content":"x","at":1}}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	other.choose(".side.list input[type=file]", bad)
	other.sees("they form a loop")
	b.clean()
	other.clean()
}

// TestChat_HostileMarkdown renders texts that are nested, long or broken, in a time that grows with their length.
func TestChat_HostileMarkdown(t *testing.T) {
	r := newRig(t)
	b := start(t)(t, views()[0])
	b.open(r.URL, "chat")
	var report string
	b.eval(`import("/console/markdown.js").then(({render}) => {
		const show = (text) => { const d = document.createElement("div"); d.append(...render(text)); return d; };
		const problems = [];
		const texts = ["*", "_", "**", "[", "](", "`+"`"+`", "$", "~~", "> ", "- ", "1. ", "| a ", "\\(", "<", "  * x\n", "#", "|-", "\n", "![", "*a _b ", "[x](http://a "];
		for (const t of texts) {
			const begin = performance.now();
			show(t.repeat(20000));
			const took = performance.now() - begin;
			if (took > 20000) problems.push(JSON.stringify(t) + " took " + Math.round(took) + " ms");
		}
		for (const [text, want] of [["a **b** c", "<p>a <strong>b</strong> c</p>"], ["snake_case_name", "<p>snake_case_name</p>"],
			["1. a\n2. b\n   - c\n", "<ol><li>a</li><li>b<ul><li>c</li></ul></li></ol>"], ["2 * 3 * 4", "<p>2 * 3 * 4</p>"],
			["<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"], ["> a\n> b", "<blockquote><p>a\nb</p></blockquote>"],
			["costs $5 and $6", "<p>costs $5 and $6</p>"], ["***x***", "<p><strong><em>x</em></strong></p>"], ["a  \nb", "<p>a<br>b</p>"],
			["\\*no\\*", "<p>*no*</p>"], ["[a](data:text/html,x)", "<p><span>a</span></p>"]]) {
			const got = show(text).innerHTML;
			if (got !== want) problems.push(JSON.stringify(text) + " gives " + got);
		}
		return problems.join("\n");
	})`, &report)
	if report != "" {
		t.Error(report)
	}
	b.clean()
}

func TestMesh_PictureAndFailover(t *testing.T) {
	each(t, views(), func(t *testing.T, r *rig, b *tab) {
		b.open(r.URL, "mesh")
		b.until("lanes", `document.querySelectorAll(".lane").length === 3 && document.querySelectorAll(".card.stage").length === 7`)
		b.sees("Layers 12–21")
		b.sees("slowest against the plan: stage 1 at shard-green-1")
		b.until("the slow stage", `[...document.querySelectorAll(".times.warn")].some((e) => e.innerText.includes("9.90 ms a row, predicted 5.40 ms"))`)
		b.until("who holds what", `document.querySelectorAll(".strip li").length === 7`)
		b.sees("Nothing since you opened this page")
		b.axe("the mesh")
		b.shoot("mesh")
		r.set(func() { r.mesh = failedMesh() })
		b.sees("shard-blue-1 is gone")
		b.sees("Its 4 requests go on over 47c2e4f0")
		b.sees("has computed 412 positions again")
		b.until("two lanes", `document.querySelectorAll(".lane").length === 2`)
		b.eval(`document.getElementById("events").scrollIntoView({block: "start"}), true`, nil)
		b.axe("after a failover")
		b.shoot("mesh-failover")
	})
}

func TestRuns_CurvesComparisonStartAndStop(t *testing.T) {
	each(t, two(), func(t *testing.T, r *rig, b *tab) {
		b.open(r.URL, "runs")
		b.until("curves", `document.querySelectorAll(".chart:not([hidden]) .curve").length >= 5`)
		b.click("input[type=checkbox]", "")
		b.eval(`document.querySelector('input[data-run="tolstoy-base"]').click(), true`, nil)
		b.eval(`document.querySelector('input[data-run="tolstoy-wide"]').checked || document.querySelector('input[data-run="tolstoy-wide"]').click(), true`, nil)
		b.until("two runs in a chart", `new Set([...document.querySelectorAll(".chart .curve")].map((c) => c.getAttribute("class"))).size >= 4`)
		b.sees("Comparison")
		b.axe("runs")
		var covered []string
		b.eval(`[...document.querySelectorAll("tbody .state")].filter((s) => s.getBoundingClientRect().right >
			s.closest("tr").lastElementChild.getBoundingClientRect().left).map((s) => s.innerText)`, &covered)
		if len(covered) > 0 {
			t.Errorf("the actions cover the states %q", covered)
		}
		b.shoot("runs")
		b.eval(`document.getElementById("curves").scrollIntoView({block: "start"}), true`, nil)
		b.until("a value under the cursor", `(() => { const s = document.querySelector(".chart svg"); s.focus({preventScroll: true});
			s.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true})); return s.parentElement.querySelector(".readout").innerText.includes("step "); })()`)
		b.shoot("runs-curves")
		b.click("summary", "Samples")
		b.sees("was silent for a while, and step 700 went by")
		b.click("summary", "Files")
		b.sees("metrics.jsonl")

		// new steps arrive while the page is open
		r.runs.mu.Lock()
		r.runs.files["tolstoy-wide metrics.jsonl"] += `{"step":741,"loss":2.5,"gradient_norm":1,"learning_rate":0.001,"step_ms":1,"tokens_per_second":1}` + "\n"
		r.runs.mu.Unlock()
		b.until("a live step", `document.querySelector(".chart svg").getAttribute("aria-label").includes("tolstoy-wide: 2.50")`)

		b.click("button", "Start a run")
		b.axe("the form of a run")
		b.shoot("runs-start")
		b.eval(`document.querySelector("dialog textarea").value = document.querySelector("dialog textarea").value.replace("text.txt", "missing.txt"), true`, nil)
		b.expect("400")
		b.click("dialog button", "Start")
		b.sees("data.text")
		b.eval(`document.querySelector("dialog textarea").value = document.querySelector("dialog textarea").value.replace("missing.txt", "text.txt"), true`, nil)
		b.click("dialog button", "Start")
		b.until("the new run", `!document.querySelector("dialog") && document.querySelector('input[data-run="from-scratch"]')?.checked`)
		b.expect("404")
		b.click("button", "Stop tolstoy-wide")
		b.until("the stopped run", `[...document.querySelectorAll("tr")].some((r) => r.innerText.includes("tolstoy-wide") && r.innerText.includes("stopped"))`)
	})
}

func TestModels_PullLoadAndAdapters(t *testing.T) {
	each(t, two(), func(t *testing.T, r *rig, b *tab) {
		b.open(r.URL, "models")
		b.sees("lamina-tolstoy")
		b.click("button", "Pull a model")
		b.axe("the form of a pull")
		b.fill("dialog input[name=source]", "nowhere")
		b.expect("400")
		b.click("dialog button", "Pull")
		b.sees("no repository OWNER/NAME")
		b.fill("dialog input[name=source]", "someone/qwen3-8b")
		b.click("dialog button", "Pull")
		b.sees("1.2 GiB of 4.8 GiB, 24 %")
		b.click("button", "Load qwen3-4b")
		b.click("button", "Load an adapter")
		dir := t.TempDir()
		for name, text := range map[string]string{"adapter_config.json": "{}", "adapter_model.safetensors": "weights"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b.fill("dialog input[name=name]", "pirate")
		b.choose("dialog input[name=config]", filepath.Join(dir, "adapter_config.json"))
		b.choose("dialog input[name=weights]", filepath.Join(dir, "adapter_model.safetensors"))
		b.click("dialog button", "Load")
		b.sees("pirate")
		b.sees("on 2 pipelines")
		b.axe("models")
		b.shoot("models")
		b.click("button", "Cancel the pull")
		b.sees("canceled")
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.loaded) != 1 || r.loaded[0] != "qwen3-4b" {
			t.Errorf("loaded %q", r.loaded)
		}
	})
}

func TestKeys_MadeShownOnceRotatedAndRevoked(t *testing.T) {
	each(t, two(), func(t *testing.T, r *rig, b *tab) {
		b.open(r.URL, "keys")
		b.sees("website")
		b.click("button", "Make a key")
		b.axe("the form of a key")
		b.shoot("keys-make")
		b.fill("dialog input[name=name]", "laptop")
		b.click("dialog button", "Make")
		b.sees("never shown again")
		var secret string
		b.eval(`document.querySelector(".secret").textContent`, &secret)
		if _, err := r.keys.Authenticate(secret); err != nil {
			t.Errorf("the secret that is shown: %v", err)
		}
		b.axe("keys")
		b.eval(`document.querySelector(".secret").textContent = "lamina_" + "5c0ffee5".repeat(8), true`, nil) // for the picture
		b.shoot("keys")
		b.click("button", "Rotate laptop")
		b.eval(`document.querySelector("dialog select").value = "0", true`, nil)
		b.click("dialog button", "Rotate")
		b.sees("The key has another secret.")
		if _, err := r.keys.Authenticate(secret); err == nil {
			t.Error("the secret from before the rotation is valid")
		}
		b.click("button", "Put away")
		b.until("no secret", `!document.querySelector(".secret") && !document.body.innerHTML.includes("lamina_")`)
		b.click("button", "Revoke laptop")
		b.click("dialog button", "Revoke")
		b.until("a revoked key", `[...document.querySelectorAll("tr")].some((r) => r.innerText.includes("laptop") && r.innerText.includes("revoked"))`)
	})
}

// TestKeys_ASecretSurvivesACancelThatIsTooLate goes back, by the button or the keyboard, when the router has made the
// key and its answer is still on the way. Another key puts no secret away.
func TestKeys_ASecretSurvivesACancelThatIsTooLate(t *testing.T) {
	each(t, two()[:1], func(t *testing.T, r *rig, b *tab) {
		b.open(r.URL, "keys")
		b.sees("website")
		for i, back := range []func(){func() { b.click("dialog button", "Cancel") }, func() { b.press(kb.Escape) }} {
			b.eval(`window.direct ??= fetch, window.answer = null, window.fetch = async (...a) => {
				const response = await direct(...a);
				if (a[1]?.method === "POST") await new Promise((go) => { window.answer = go; });
				return response;
			}, true`, nil)
			b.click("button", "Make a key")
			b.fill("dialog input[name=name]", fmt.Sprintf("late%d", i))
			b.click("dialog button", "Make")
			b.until("the answer", `window.answer !== null`)
			back()
			b.until("no dialog", `!document.querySelector("dialog")`)
			b.eval(`window.fetch = direct, window.answer(), true`, nil)
			b.until("the secret", fmt.Sprintf(`document.querySelectorAll(".secret").length === %d`, i+1))
			var secret string
			b.eval(`document.querySelector(".secret").textContent`, &secret)
			if _, err := r.keys.Authenticate(secret); err != nil {
				t.Errorf("the secret that is shown: %v", err)
			}
		}
		b.click("button", "Put away")
		b.until("one secret", `document.querySelectorAll(".secret").length === 1`)
		b.click("button", "Make a key")
		b.click("dialog button", "Cancel")
		b.until("no dialog", `!document.querySelector("dialog")`)
	})
}

func TestPages_KeyboardAndThemes(t *testing.T) {
	r := newRig(t)
	b := start(t)(t, views()[0])
	b.open(r.URL, "mesh")
	b.eval(`document.activeElement.blur(), true`, nil)
	b.press(kb.Tab)
	b.until("the link that skips the bar", `document.activeElement.className === "skip"`)
	b.click("#theme", "")
	b.until("the dark theme", `document.documentElement.dataset.theme === "dark" && getComputedStyle(document.body).backgroundColor === "rgb(20, 22, 27)"`)
	b.axe("the dark theme by choice")
	b.reload()
	b.until("the same theme", `document.documentElement.dataset.theme === "dark"`)
	b.click("#theme", "")
	b.until("the light theme", `!document.documentElement.dataset.theme`)
	b.clean()
}

func TestPages_EmptyStatesSayWhatToDo(t *testing.T) {
	open := start(t)
	for _, v := range []view{views()[0], views()[2]} {
		r := newRig(t)
		b := open(t, v)
		r.mesh = nil
		r.runs.list = nil
		r.set(func() { r.mesh = emptyMesh() })
		b.open(r.URL, "chat")
		b.sees("No model is served yet")
		b.axe("a chat without a model")
		b.open(r.URL, "mesh")
		b.sees("No pipeline is open")
		b.axe("an empty mesh")
		b.shoot("mesh-empty")
		b.open(r.URL, "runs")
		b.sees("No run yet")
		b.axe("no runs")
		b.clean()
	}
}
