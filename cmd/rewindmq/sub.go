package main

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/exit"
	"rewindmq/cmd/internal/subscribe"
	"rewindmq/schema"
)

// sub are the flags of rewindmq sub.
type sub struct {
	client
	filters    []string
	persistent bool
	expiry     uint32
	format     string
	count      int64
	wait       string
	verbose    bool
	receiveMax uint16
}

func newSub() *cobra.Command {
	var s sub
	cmd := &cobra.Command{
		Use:   "sub -t FILTER",
		Short: "Receive messages and write them to standard output",
		Long: "Receives over MQTT 5 and connects again by itself. A message is written out before it is acknowledged, so killing\n" +
			"sub loses nothing. At QoS 2, the default, a lost connection or a killed broker brings no message twice; only when\n" +
			"sub itself is killed between a write and its acknowledgement, that message comes again.\n\n" +
			"With --persistent the server keeps the session while sub is away, and what was missed comes first.\n" +
			"Ctrl-C acknowledges what is written, disconnects and exits with 0.",
		Example: "  rewindmq sub -t 'dev/+/reading' -i dashboard --persistent -o csv\n" +
			"  rewindmq sub -t 'dev/#' -o json -C 10 -W 60",
		Args: cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error { return s.run(cmd) }),
	}
	s.add(cmd)
	f := cmd.Flags()
	f.StringArrayVarP(&s.filters, "topic", "t", nil, "topic `filter`, may have + and #; repeatable (required)")
	f.BoolVarP(&s.persistent, "persistent", "c", false, "keep the session on the server; needs -i")
	f.Uint32Var(&s.expiry, "expiry", math.MaxUint32, "with --persistent: `seconds` that the server keeps the session; the default is for ever")
	f.StringVarP(&s.format, "output", "o", "text", "output `format`: "+strings.Join(subscribe.Formats[:], ", "))
	f.Int64VarP(&s.count, "count", "C", 0, "end after so many messages")
	f.StringVarP(&s.wait, "wait", "W", "", "end after so many `seconds`, with exit code 6 when -C is not reached")
	f.BoolVarP(&s.verbose, "verbose", "v", false, "write the topic before each message")
	f.Uint16Var(&s.receiveMax, "receive-maximum", 0, "messages that the server may have in flight; 0: 65535")
	return cmd
}

func (s *sub) run(cmd *cobra.Command) error {
	o, err := s.options(cmd)
	if err != nil {
		return err
	}
	return subscribe.Run(cmd.Context(), cmd.OutOrStdout(), o)
}

// options judges the flags.
func (s *sub) options(cmd *cobra.Command) (subscribe.Options, error) {
	connection, err := s.client.options(cmd, "rewindmq-sub-")
	if err != nil {
		return subscribe.Options{}, err
	}
	connection.ReceiveMaximum = s.receiveMax
	for _, f := range s.filters {
		if err := checkText("topic filter (-t)", f); err != nil {
			return subscribe.Options{}, err
		}
		if err := schema.ValidFilter(f); err != nil {
			return subscribe.Options{}, usage("-t %s: %s", f, notAFilter)
		}
	}
	wait, err := seconds(s.wait)
	switch {
	case err != nil:
		return subscribe.Options{}, err
	case len(s.filters) == 0:
		return subscribe.Options{}, usage("-t says what to subscribe to")
	case s.persistent && s.id == "":
		return subscribe.Options{}, usage("--persistent needs -i: the session belongs to a client id")
	case s.count < 0:
		return subscribe.Options{}, usage("-C %d: it is not negative", s.count)
	}
	format, err := subscribe.NewFormat(s.format, s.verbose)
	if err != nil {
		return subscribe.Options{}, exit.With(exit.Usage, err)
	}
	return subscribe.Options{
		Link: connection, Filters: s.filters, QoS: s.qos, Persistent: s.persistent, Expiry: s.expiry,
		Count: s.count, Wait: wait, ConnectWait: s.client.wait, Format: format, Notice: s.notice(cmd),
	}, nil
}

// notAFilter says what is wrong with what schema.ValidFilter refuses.
const notAFilter = "not a topic filter: # stands alone at the end, + alone in its level"

// seconds reads a number of seconds, as mosquitto's tools take it, or a time such as 1m30s.
func seconds(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	if n, err := strconv.ParseFloat(text, 64); err == nil && n > 0 && n < 1e9 {
		return time.Duration(n * float64(time.Second)), nil
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return d, nil
	}
	return 0, usage("-W %s: it is a number of seconds", text)
}
