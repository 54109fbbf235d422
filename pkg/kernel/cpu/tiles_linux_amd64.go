package cpu

import "golang.org/x/sys/unix"

// grantTiles requests permission to use AMX tiles from the kernel, which keeps their state for each thread from the
// first use on.
func grantTiles() bool {
	const requestPermission, tileData = 0x1023, 18 // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, requestPermission, tileData, 0)
	return errno == 0
}
