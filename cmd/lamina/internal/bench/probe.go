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

// machine says where a measurement was made.
type machine struct {
	CPU         string `json:"cpu"` // empty where the system does not say
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

// kibibytes reads "123 kB" and "512K" as bytes.
func kibibytes(text string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimRight(text, " kKB"), 10, 64)
	return n << 10, err == nil
}

// peakRSS is the most memory that this process has held, in bytes; nil where the
// system does not say.
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

// cacheBytes is the size of all the processors' caches together, or 0 where the
// system does not say.
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

// Bounds of the read probe's buffer and time.
const (
	probeLeast  = 256 << 20
	probeMost   = 2 << 30
	probeTime   = 200 * time.Millisecond
	probePasses = 3
)

// probeSize is a buffer of which no cache holds a part worth mention.
func probeSize() int {
	return int(min(max(4*cacheBytes(), probeLeast), probeMost))
}

// readGBps is how fast threads together stream a buffer of size bytes from memory,
// in 10⁹ bytes a second: the best of several passes, so that a neighbour's burst
// does not count.
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
