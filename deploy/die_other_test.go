//go:build !linux

package deploy

import "syscall"

// dieWithParent is for Linux only; elsewhere the test kills what it started, unless it is killed itself.
func dieWithParent() *syscall.SysProcAttr { return nil }
