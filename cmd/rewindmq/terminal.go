package main

import (
	"io"
	"net"
	"strconv"

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
	if !inJSON(format, w) {
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(c)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), lowest))
}

// count returns a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// inJSON says whether the log that goes to w is JSON.
func inJSON(format string, w io.Writer) bool {
	return format != "console" && (format != "auto" || !onTerminal(w))
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
