package app

import (
	"os"
	"strings"
)

// bootID is where Linux names a machine since it was started. Containers of one machine read the same name.
const bootID = "/proc/sys/kernel/random/boot_id"

// machineName names this machine, or returns "" if it cannot.
func machineName() string {
	if id, err := os.ReadFile(bootID); err == nil {
		return strings.TrimSpace(string(id))
	}
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}
