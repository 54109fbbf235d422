//go:build unix

package auth

import (
	"os"
	"syscall"
)

// keepOwner gives a file the owner and group of another one as far as the caller may: a key file that a service reads
// stays readable for it when an administrator has changed it.
func keepOwner(f *os.File, of os.FileInfo) {
	if stat, ok := of.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(stat.Uid), int(stat.Gid)) // only root may give files away
	}
}
