package cpu

import "golang.org/x/sys/unix"

// grantTiles asks the kernel to let the process use AMX tiles, whose state it keeps for
// each thread from the first use on.
func grantTiles() bool {
	const requestPermission, tileData = 0x1023, 18 // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, requestPermission, tileData, 0)
	return errno == 0
}
