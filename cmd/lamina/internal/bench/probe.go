package bench

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// machine describes the machine of a measurement.
type machine struct {
	CPU         string `json:"cpu"` // empty if the system does not tell
	Cores       int    `json:"cores"`
	MemoryBytes int64  `json:"memory_bytes,omitempty"`
	OS          string `json:"os"`
	Arch        string `json:"arch"`
	Go          string `json:"go"`
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version()}
	m.CPU, _ = procField("/proc/cpuinfo", "model name")
	if text, ok := procField("/proc/meminfo", "MemTotal"); ok {
		m.MemoryBytes, _ = kibibytes(text)
	}
	return m
}

// procField finds the first "name: value" line of a file such as /proc/meminfo.
func procField(path, name string) (string, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// kibibytes parses sizes such as "123 kB" and "512K" and returns bytes.
func kibibytes(text string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimRight(text, " kKB"), 10, 64)
	return n << 10, err == nil
}

// peakRSS returns the peak resident set size of this process in bytes, or nil if the system does
// not tell.
func peakRSS() *int64 {
	text, ok := procField("/proc/self/status", "VmHWM")
	if !ok {
		return nil
	}
	n, ok := kibibytes(text)
	if !ok {
		return nil
	}
	return &n
}

// cacheBytes returns the total size of all processor caches, or 0 if the system does not tell.
func cacheBytes() int64 {
	dirs, _ := filepath.Glob("/sys/devices/system/cpu/cpu*/cache/index*") // the pattern is well-formed
	read := func(dir, name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(text))
	}
	seen := map[string]bool{} // a cache is listed by every processor that shares it
	var sum int64
	for _, dir := range dirs {
		id := read(dir, "level") + read(dir, "type") + " " + read(dir, "shared_cpu_list")
		if n, ok := kibibytes(read(dir, "size")); ok && !seen[id] {
			seen[id] = true
			sum += n
		}
	}
	return sum
}

// Bounds of the buffer and the time of the read probe.
const (
	probeMin    = 256 << 20
	probeMax    = 2 << 30
	probeTime   = 200 * time.Millisecond
	probePasses = 3
)

// probeSize returns the size of a buffer that is much larger than the caches.
func probeSize() int {
	return int(min(max(4*cacheBytes(), probeMin), probeMax))
}

// readGBps measures how fast the threads together read a buffer of size bytes from memory, in 10⁹
// bytes per second. It returns the best of several passes, because other processes may disturb one.
func readGBps(ctx context.Context, threads, size int) (float64, error) {
	set := cpu.New(threads)
	defer set.Close()
	var best float64
	for range probePasses {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		best = max(best, set.ReadRate(size, probeTime))
	}
	return best, nil
}
