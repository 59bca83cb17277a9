package broker

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain: no test leaves a goroutine behind, whatever its clients did.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
