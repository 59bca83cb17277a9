package main

import (
	"fmt"
	"io"
	"strings"

	"go.uber.org/zap"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
)

// herald tells how a run of the broker goes: people in plain lines on standard error, machines in the log. Where the log
// is JSON all that leaves the process is JSON, so that whoever collects it can read each line.
type herald struct {
	log *zap.Logger // nil: people read
	w   io.Writer
	// served: clients were served, so what ends is a run and not a start.
	served bool
}

func newHerald(c *config.Config, log *zap.Logger, w io.Writer) *herald {
	if !inJSON(c.Log.Format, w) {
		log = nil
	}
	return &herald{log: log, w: w}
}

// serving tells what runs and where. It does not tell a secret in the store's address.
func (h *herald) serving(c *config.Config, b *broker, n neighbours) {
	h.served = true
	if h.log == nil {
		announce(h.w, c, b, n)
		return
	}
	this := thisBuild()
	h.log.Info("serving", zap.String("version", this.Version), zap.String("revision", this.Revision), zap.String("node", c.Node.Name),
		zap.String("store", b.store), zap.Strings("listeners", b.addresses), zap.String("http", n.http))
}

// stopping tells that the drain begins, and why.
func (h *herald) stopping(why error) {
	if h.log == nil {
		fmt.Fprintln(h.w, "stopping: clients are told, writes under way are finished; once more to stop at once")
		return
	}
	h.log.Info("stopping", zap.String("why", why.Error()))
}

// ended tells how it ended, and returns err. To people the command itself tells an error.
func (h *herald) ended(err error) error {
	switch {
	case h.log == nil:
		return err
	case err == nil:
		h.log.Info("stopped", zap.Int("exit_code", int(exit.OK)))
		return nil
	}
	what := "not started"
	if h.served {
		what = "stopped"
	}
	code, hint := exit.Of(err), exit.Hint(err)
	fields := []zap.Field{zap.Error(err), zap.Int("exit_code", int(code))}
	if hint != "" {
		fields = append(fields, zap.String("try", hint))
	}
	h.log.Error(what, fields...)
	return &exit.Error{Code: code, Err: err, Try: hint, Told: true}
}

// announce prints the five lines that tell a newcomer what runs and how to try it.
func announce(w io.Writer, c *config.Config, b *broker, n neighbours) {
	http := "off"
	if n.http != "" {
		http = n.http + "  (/metrics, /livez, /readyz; on this machine /api/v1)"
	}
	try := "rewindmq sub -t 'dev/#'  and, in another terminal,  rewindmq pub -t dev/1 -m hello"
	for _, a := range b.addresses {
		if addr, isTCP := strings.CutPrefix(a, "tcp://"); isTCP {
			if flags := dialFlags(addr); flags != "" {
				try = fmt.Sprintf("rewindmq sub%s -t 'dev/#'  and, in another terminal,  rewindmq pub%s -t dev/1 -m hello", flags, flags)
			}
			break
		}
	}
	fmt.Fprintf(w, "mqtt   %s\nstore  %s\nnode   %s, rewindmq %s\nhttp   %s\ntry    %s\n",
		strings.Join(b.addresses, "  "), b.store, c.Node.Name, thisBuild().Version, http, try)
}
