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

// adopt gives a new file the owner and group of its folder as far as the caller may. If that makes it the file of
// another group, which may read the folder, then it may read the file: an administrator who makes the first key in a
// folder of root and of the service's group makes it for the service.
func adopt(f *os.File, folder os.FileInfo) error {
	keepOwner(f, folder)
	made, err := f.Stat()
	if err != nil {
		return err
	}
	stat, ok := made.Sys().(*syscall.Stat_t)
	if ok && int(stat.Gid) != os.Getegid() && folder.Mode().Perm()&0o040 != 0 {
		return f.Chmod(0o640)
	}
	return nil
}
