package grammar_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// BenchmarkCompile compiles the bench schemas over random tokens. cpu-us/op is the thread's
// CPU time, which other load on the machine changes little.
func BenchmarkCompile(b *testing.B) {
	data, err := os.ReadFile(fixtures.Path(b, "vectors/grammar/bench-schemas.json"))
	if err != nil {
		b.Fatal(err)
	}
	var cases []struct {
		Name   string
		Schema json.RawMessage
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		b.Fatal(err)
	}
	_, v := randomVocabulary(b, rand.New(rand.NewPCG(1, 2)), 50_000)
	for _, one := range cases {
		b.Run(one.Name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			began := cputime.Thread()
			for b.Loop() {
				g, err := grammar.Schema(one.Schema)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := grammar.Compile(g, v); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cputime.Thread()-began).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}
