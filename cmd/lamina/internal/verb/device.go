package verb

import (
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// deviceNumber returns the number of an NVIDIA GPU that --device names as cuda:N, or gpu false if it names the
// processor.
func deviceNumber(device string) (number int, gpu bool, err error) {
	if device == "" || device == "cpu" {
		return 0, false, nil
	}
	if strings.Contains(device, ",") {
		return 0, false, fault.Field("device", "%q are several devices: a process has one, so start a shard for each", device)
	}
	text, ok := strings.CutPrefix(device, "cuda:")
	n, err := strconv.ParseUint(text, 10, 8)
	if !ok || err != nil {
		return 0, false, fault.Field("device", "unknown device %q: want cpu, or cuda: and a number from 0 to 255", device)
	}
	return int(n), true, nil
}

// OnDevice reports whether the flags name a device other than the processor.
func (f *KernelFlags) OnDevice() bool { return f.Device != "" && f.Device != "cpu" }
