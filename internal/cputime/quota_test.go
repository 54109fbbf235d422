package cputime_test

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
)

func machine(files map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range files {
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

func TestReadQuota_OfBothVersions(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  cputime.Quota
	}{
		"no groups": {},
		"version 2": {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"},
			cputime.Quota{Processors: 0.5, Period: 100 * time.Millisecond}},
		"the tightest": {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n",
			"sys/fs/cgroup/a/cpu.max": "2000 10000\n"},
			cputime.Quota{Processors: 0.2, Period: 10 * time.Millisecond}},
		"none": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, cputime.Quota{}},
		"version 1": {map[string]string{"proc/self/cgroup": "4:memory:/x\n1:cpu:/g\n0::/\n",
			"sys/fs/cgroup/cpu/g/cpu.cfs_quota_us": "2000\n", "sys/fs/cgroup/cpu/g/cpu.cfs_period_us": "5000\n",
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
			cputime.Quota{Processors: 0.4, Period: 5 * time.Millisecond}},
		"controllers together": {map[string]string{"proc/self/cgroup": "3:cpu,cpuacct:/docker/1\n",
			"sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us":  "150000",
			"sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000"},
			cputime.Quota{Processors: 1.5, Period: 100 * time.Millisecond}},
	} {
		if got := cputime.ReadQuota(machine(tc.files)); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func FuzzReadQuota(f *testing.F) {
	f.Add("1:cpu:/../../x\n0::/a\n", "max 100000")
	f.Add("0::/\n", "50000 100000")
	f.Add("::", "1 1 1")
	f.Fuzz(func(t *testing.T, groups, quota string) {
		q := cputime.ReadQuota(machine(map[string]string{"proc/self/cgroup": groups, "sys/fs/cgroup/cpu.max": quota,
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/cpu.cfs_period_us": "5000"}))
		if !(q.Processors >= 0) || q.Period < 0 || (q.Processors > 0) != (q.Period > 0) {
			t.Errorf("%+v", q)
		}
	})
}
