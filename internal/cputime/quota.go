package cputime

import (
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
	"time"
)

// Quota is the processor time that a control group has in each period. Once it is used up, its processes stand still
// until the next period.
type Quota struct {
	Processors float64 // that may be used on average; 0 for any number
	Period     time.Duration
}

// mostPeriod bounds the period of a quota; the kernel has one second.
const mostPeriod = 10 * time.Second

// ReadQuota returns the quota of this process: the tightest of its control groups, of version 1 or 2. root is the root
// of the file system. The quota is zero if there is none, or it cannot be read.
func ReadQuota(root fs.FS) Quota {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return Quota{}
	}
	var out Quota
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // "1:cpu,cpuacct:/group", or "0::/group"
		if len(fields) != 3 {
			continue
		}
		for group := path.Clean("/" + fields[2]); ; group = path.Dir(group) {
			var q Quota
			if fields[1] == "" {
				q = quotaOf(root, "sys/fs/cgroup"+group, "cpu.max", "")
			} else {
				for _, controller := range strings.Split(fields[1], ",") {
					if controller == "cpu" {
						q = quotaOf(root, "sys/fs/cgroup/"+fields[1]+group, "cpu.cfs_quota_us", "cpu.cfs_period_us")
					}
				}
			}
			if q.Processors > 0 && (out.Processors == 0 || q.Processors < out.Processors) {
				out = q
			}
			if group == "/" {
				break
			}
		}
	}
	return out
}

// quotaOf reads the quota of a group, of one file or of two.
func quotaOf(root fs.FS, dir, quota, period string) Quota {
	text, err := fs.ReadFile(root, path.Join(dir, quota))
	if err == nil && period != "" {
		var second []byte
		second, err = fs.ReadFile(root, path.Join(dir, period))
		text = append(append(text, ' '), second...)
	}
	if err != nil {
		return Quota{}
	}
	return parseQuota(string(text))
}

// parseQuota reads microseconds of a quota and its period. "max" or -1 is no quota.
func parseQuota(text string) Quota {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return Quota{}
	}
	quota, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil || quota <= 0 {
		return Quota{}
	}
	period, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || period <= 0 || period > mostPeriod.Microseconds() {
		return Quota{}
	}
	processors := float64(quota) / float64(period)
	if processors > math.MaxInt32 {
		return Quota{}
	}
	return Quota{processors, time.Duration(period) * time.Microsecond}
}
