package mongod

import "syscall"

// dieWithParent makes the kernel kill the process when this one dies, however it
// dies: no mongod outlives a test run.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
