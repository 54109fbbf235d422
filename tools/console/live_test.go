package console_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp/kb"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestLive_ChatMeshRunAndKeysOfARealMesh uses the console of a mesh with keys: the bundled model over two stages, a
// training run that is started in the form, and a key that is made and used at once.
func TestLive_ChatMeshRunAndKeysOfARealMesh(t *testing.T) {
	b := start(t)(t, views()[0])
	model, err := filepath.Abs("../../models/lamina-tolstoy")
	if err != nil {
		t.Fatal(err)
	}
	data, path := t.TempDir(), filepath.Join(t.TempDir(), "keys.json")
	text := strings.Repeat("one two three four five six seven eight nine ten\n", 400)
	if err := os.WriteFile(filepath.Join(data, "text.txt"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, secret, err := auth.AddKey(path, auth.Key{Name: "root", Roles: []auth.Role{auth.Operator, auth.User}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	m, err := app.Start(t.Context(), app.MeshConfig{
		Model: model, Stages: 2, Kernels: app.Kernels{Set: set, Threads: 2}, HTTP: "127.0.0.1:0", KVPositions: 1024,
		Train: true, Runs: app.TrainerConfig{Dir: t.TempDir(), Data: data}, Access: app.AccessConfig{Keys: path},
		Store: app.StoreConfig{Dir: t.TempDir()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	b.run(network.Enable(), network.SetExtraHTTPHeaders(network.Headers{"Authorization": "Bearer " + secret}))
	url := "http://" + m.HTTPAddr()
	b.open(url, "chat")
	b.until("have a model", "document.querySelector('.settings select')?.value")
	b.eval(`{ const i = document.querySelector(".settings input[max='16777216']"); i.value = 12; i.dispatchEvent(new Event("change")); true }`, nil)
	b.fill("#text", "The prince")
	b.press(kb.Enter)
	b.idle()
	b.sees("12 tokens")
	b.sees("ended at the token limit")
	b.open(url, "mesh")
	b.until("two stages", `document.querySelectorAll(".card.stage").length === 2`)
	b.sees("lamina-tolstoy")

	b.open(url, "runs")
	b.click("button", "Start a run")
	// So many steps that no machine takes them before the click on Stop.
	b.eval(`{ const a = document.querySelector("dialog textarea"); const m = JSON.parse(a.value);
		Object.assign(m, {name: "live", steps: 1e6, sequence_len: 16, vocabulary: {type: "char"}, checkpoint_every: 100000, samples: undefined, evaluate_every: 0});
		Object.assign(m.model, {layers: 1, width: 32, heads: 2, kv_heads: 2, ff: 64, context: 16}); a.value = JSON.stringify(m); true }`, nil)
	b.click("dialog button", "Start")
	b.until("a curve", `document.querySelector(".chart .curve")?.getAttribute("points").split(" ").length > 5`)
	b.click("button", "Stop live")
	b.until("the end of the run", `document.querySelector("tbody .state")?.innerText === "stopped"`)

	b.open(url, "models")
	b.sees("No model here yet")
	b.open(url, "keys")
	b.click("button", "Make a key")
	b.fill("dialog input[name=name]", "second")
	b.eval(`document.querySelector("dialog input[value=operator]").click(), true`, nil)
	b.click("dialog button", "Make")
	b.until("the secret", `document.querySelector(".secret")?.textContent.startsWith("lamina_")`)
	var second string
	b.eval(`document.querySelector(".secret").textContent`, &second)
	b.run(network.SetExtraHTTPHeaders(network.Headers{"Authorization": "Bearer " + second}))
	b.reload()
	b.until("the keys, with the new key", `[...document.querySelectorAll("tbody th")].some((e) => e.innerText.includes("second"))`)
	b.expect("404") // the metrics of a run before its first step
	b.clean()
}
