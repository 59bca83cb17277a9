package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/config"
)

func newHealthcheck() *cobra.Command {
	var s settings
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the broker on this machine whether it is ready: exit code 0 or 1",
		Long:  "Asks /readyz at the address that the configuration gives. Made for containers without a shell.",
		Args:  cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error {
			loaded, err := s.load(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			said, err := askReady(ctx, loaded.Config.HTTP.Addr)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
			return err
		}),
	}
	s.add(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	return cmd
}

// askReady returns what /readyz says, or an error when it does not say yes.
func askReady(ctx context.Context, addr string) (string, error) {
	if addr == config.HTTPOff {
		return "", errors.New("HTTP is off, so nobody can be asked (http.addr)")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("http.addr %s: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1" // an address to listen on is not one to call
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return "", fmt.Errorf("ask the broker: %w", err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "", fmt.Errorf("ask the broker: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	said := strings.TrimSpace(string(body))
	switch {
	case err != nil:
		return "", fmt.Errorf("ask the broker: %w", err)
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("the broker says %d: %s", resp.StatusCode, said)
	}
	return said, nil
}
