package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/api"
	"rewindmq/schema"
)

// messages are the flags of rewindmq messages.
type messages struct {
	operator
	topic, client, from, to string
	limit                   int
}

func newMessages() *cobra.Command {
	var o messages
	cmd := &cobra.Command{
		Use:   "messages",
		Short: "List messages of the log, by topic, publisher and time",
		Long: "Lists what was published, as far as the log is kept (store.retention.messages), about in the order of time. A message\n" +
			"is of the time that its id tells, in whole seconds. A time is 2026-01-31T12:00:00Z, a day (2026-01-31, UTC), or how\n" +
			"long ago (90m, 24h). As text, a payload is cut after 60 characters; --output json gives all of it.\n\n" +
			"Asks the broker at the address that the configuration gives (--http, http.addr). It answers only on the machine\n" +
			"that it runs on.",
		Example: "  rewindmq messages --topic 'plant/7/#' --from 1h\n  rewindmq messages --client pump-1 --from 2026-01-30 --to 2026-01-31 --output json",
		Args:    cobra.NoArgs,
	}
	cmd.RunE = o.asking(o.list)
	o.add(cmd)
	cmd.Flags().StringVarP(&o.topic, "topic", "t", "", "`filter` of topics (default: every topic)")
	cmd.Flags().StringVar(&o.client, "client", "", "`id` of the publisher")
	cmd.Flags().StringVar(&o.from, "from", "", "`time` of the first")
	cmd.Flags().StringVar(&o.to, "to", "", "`time` before which they were published")
	cmd.Flags().IntVar(&o.limit, "limit", 0, "end after so many `messages` (0: no bound)")
	return cmd
}

var errEnough = errors.New("as many as asked for")

func (o *messages) list(cmd *cobra.Command, c *api.Client, _ []string) error {
	now := time.Now()
	from, err := parseTime("--from", o.from, now)
	if err != nil {
		return err
	}
	to, err := parseTime("--to", o.to, now)
	if err != nil {
		return err
	}
	if o.topic != "" {
		if err := schema.ValidFilter(o.topic); err != nil {
			return usage("--topic %s: %s", o.topic, notAFilter)
		}
	}
	if o.limit < 0 {
		return usage("--limit %d: want a number from 0", o.limit)
	}
	p := o.printer(cmd.OutOrStdout(), "CREATED", "TOPIC", "QOS", "CLIENT", "ID", "BYTES", "PAYLOAD")
	n := 0
	err = c.EachMessage(cmd.Context(), o.topic, o.client, from, to, func(m api.Message) error {
		payload, err := m.Payload()
		if err != nil {
			return fmt.Errorf("message %s: %w", m.ID, err)
		}
		err = p.print(m, m.Created.Format(time.RFC3339Nano), plain(m.Topic), strconv.Itoa(int(m.QoS)), plain(m.Client), m.ID, strconv.Itoa(m.Bytes), short(payload))
		if n++; err == nil && n == o.limit {
			err = errEnough
		}
		return err
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return p.end(err)
}

// parseTime reads a time of the command line; "" is the zero time.
func parseTime(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, usage("%s %s: want a time as 2026-01-31T12:00:00Z, a day as 2026-01-31, or how long ago as 90m", flag, text)
}

// shortPayload is how much of a payload stands in a table.
const shortPayload = 60

// short gives the beginning of a payload, on one line.
func short(payload []byte) string {
	if !utf8.Valid(payload) {
		return fmt.Sprintf("(%d bytes, not text)", len(payload))
	}
	cut, n := "", 0
	for i := range string(payload) {
		if n++; n > shortPayload {
			payload, cut = payload[:i], "…"
			break
		}
	}
	return plain(string(payload)) + cut
}
