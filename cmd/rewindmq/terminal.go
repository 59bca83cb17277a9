package main

import (
	"io"
	"net"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger returns a logger that writes to w: for people on a terminal, else JSON, unless the format says which.
func newLogger(level, format string, w io.Writer) *zap.Logger {
	lowest := zapcore.InfoLevel
	_ = lowest.Set(level) // the configuration has checked it
	c := zap.NewProductionEncoderConfig()
	c.EncodeTime = zapcore.ISO8601TimeEncoder
	encoder := zapcore.NewJSONEncoder(c)
	if format == "console" || format == "auto" && onTerminal(w) {
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(c)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), lowest))
}

// reachable returns a bound address as one that can be called from this machine.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// dialFlags returns the flags with which pub and sub reach an address, or nothing when their defaults do.
func dialFlags(addr string) string {
	host, port, err := net.SplitHostPort(reachable(addr))
	if err != nil {
		return ""
	}
	flags := ""
	if host != "localhost" && host != "127.0.0.1" {
		flags += " -h " + host
	}
	if port != "1883" {
		flags += " -p " + port
	}
	return flags
}
