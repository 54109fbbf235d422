// Package testdevice chooses what tests of GPUs run on: the twin, or a GPU if LAMINA_GPU names one as cuda:N and the
// test's program is built with the tag cuda. bench/gpu.sh does that on a machine that has one.
package testdevice

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// Variable is the environment variable that names a GPU.
const Variable = "LAMINA_GPU"

// Real reports whether tests run on a GPU.
func Real() bool { return os.Getenv(Variable) != "" }

// Open returns a driver and the number of the device to use: that of Variable, or a twin as configured.
func Open(t testing.TB, c twin.Config) (d driver.Driver, number int) {
	t.Helper()
	if !Real() {
		return twin.New(c), 0
	}
	text, ok := strings.CutPrefix(os.Getenv(Variable), "cuda:")
	number, err := strconv.Atoi(text)
	if !ok || err != nil {
		t.Fatalf("%s is %q, want cuda: and a number", Variable, os.Getenv(Variable))
	}
	if d, err = openReal(); err != nil {
		t.Fatal(err)
	}
	return d, number
}
