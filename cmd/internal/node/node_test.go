package node

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"rewindmq/cmd/internal/config"
)

// A node that is told to stop before it has started ends in order.
func TestStoppedBeforeStart(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.Listen, c.Store.Data = []string{"tcp://127.0.0.1:0"}, t.TempDir()
	n, err := Open(&c, prometheus.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
}
