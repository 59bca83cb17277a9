package deploy

import "syscall"

// dieWithParent makes the kernel kill a process when the test's process dies.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
