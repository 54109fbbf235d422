package cuda

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// cudaMachine is the number of CUDA among the machines of ELF.
const cudaMachine elf.Machine = 190

// The machine code is that of the texts as they are, byte for byte what ptxas made of them, and has every kernel.
func TestMachineCode_IsThatOfTheTexts(t *testing.T) {
	var now, made strings.Builder
	names, err := fs.Glob(texts, "*.ptx")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]map[string]bool{} // by module
	for _, name := range names {            // in the order of their names
		text, err := texts.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&now, "%x  %s\n", sha256.Sum256(text), name)
		module := strings.TrimSuffix(name, ".ptx")
		code, err := machineCode("sm_90", module)
		if err != nil || code == nil {
			t.Fatalf("%s: %d bytes, %v", module, len(code), err)
		}
		fmt.Fprintf(&made, "%x  %s.cubin\n", sha256.Sum256(code), module)
		entries[module] = entriesOf(t, code)
	}
	for name, want := range map[string]string{"texts.sha256": now.String(), "cubins.sha256": made.String()} {
		if sums, err := machine.ReadFile("sm_90/" + name); err != nil || want != string(sums) {
			t.Errorf("sm_90/%s has other digests: run make cubins (%v)", name, err)
		}
	}
	if files, err := fs.Glob(machine, "sm_90/*.gz"); err != nil || len(files) != len(names) {
		t.Errorf("%d files of machine code, of %d texts: %v", len(files), len(names), err)
	}
	for _, k := range Kernels() {
		if !entries[k.Module][k.Name] {
			t.Errorf("the machine code of %s has no %s", k.Module, k.Name)
		}
	}
	if code, err := machineCode("sm_80", "norm"); code != nil || err != nil {
		t.Errorf("for sm_80 there are %d bytes, %v", len(code), err)
	}
}

// entriesOf returns the names of the kernels in machine code.
func entriesOf(t *testing.T, code []byte) map[string]bool {
	t.Helper()
	code = bytes.Clone(code)
	binary.LittleEndian.PutUint32(code[20:], uint32(elf.EV_CURRENT)) // CUDA's own revisions are above it
	file, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		t.Fatal(err)
	}
	if file.Machine != cudaMachine {
		t.Errorf("the machine code is for %v", file.Machine)
	}
	symbols, err := file.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			out[s.Name] = true
		}
	}
	return out
}

// loads counts what is loaded. Its devices take machine code as the twin does text.
type loads struct {
	driver.Driver
	code, text int
	refuse     bool // machine code
}

func (l *loads) Open(number int) (driver.Device, error) {
	d, err := l.Driver.Open(number)
	return &loading{d, l}, err
}

type loading struct {
	driver.Device
	loads *loads
}

func (l *loading) Load(image []byte) (driver.Module, error) {
	if !bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		l.loads.text++
		return l.Device.Load(image)
	}
	l.loads.code++
	if l.loads.refuse {
		return l.Device.Load(image) // the twin runs none
	}
	for _, module := range l.loads.modules() {
		if code, err := machineCode("sm_90", module); err == nil && bytes.Equal(code, image) {
			text, err := Text(module)
			if err != nil {
				return 0, err
			}
			return l.Device.Load([]byte(text))
		}
	}
	return 0, fmt.Errorf("unknown machine code of %d bytes", len(image))
}

func (*loads) modules() (all []string) {
	for _, k := range Kernels() {
		if len(all) == 0 || all[len(all)-1] != k.Module {
			all = append(all, k.Module)
		}
	}
	return all
}

// Machine code is loaded where there is some for the device, and the text where there is none, where the driver refuses
// it, and on request.
func TestOpen_MachineCodeOrText(t *testing.T) {
	for _, c := range []struct {
		name       string
		major      int
		refuse     bool
		fromText   bool
		code, text bool
	}{
		{"sm_90", 9, false, false, true, false},
		{"sm_90 that refuses it", 9, true, false, true, true},
		{"sm_90 from the text", 9, false, true, false, true},
		{"sm_80", 8, false, false, false, true},
	} {
		l := &loads{refuse: c.refuse, Driver: twin.New(twin.Config{Devices: 1, Machine: twin.Simulated,
			Properties: driver.Properties{Major: c.major}})}
		set, err := Open(l, Config{FromText: c.fromText})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		n := len(l.modules())
		want := func(all bool) int {
			if all {
				return n
			}
			return 0
		}
		if l.code != want(c.code) || l.text != want(c.text) {
			t.Errorf("%s: machine code of %d modules and the text of %d, of %d", c.name, l.code, l.text, n)
		}
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	}
}
