package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/api"
	"rewindmq/schema"
)

func newDeliveries() *cobra.Command {
	var o operator
	var client, message string
	cmd := &cobra.Command{
		Use:   "deliveries",
		Short: "List who was sent what, by the delivery records",
		Long: "Lists the deliveries to a client (--client), of a message (--message), or both, as far as records are kept\n" +
			"(store.records, store.retention.records). QoS 0 leaves none. The state is what is known:\n\n" +
			"  sent          it was sent; no acknowledgement is known, or none any more: the session has ended\n" +
			"  received      QoS 2: the client has it, and the handshake goes on\n" +
			"  acknowledged  the client has acknowledged it. A session tells so when it saves its place, seconds later\n" +
			"  dropped       it was larger than the client takes\n\n" +
			"Asks the broker at the address that the configuration gives (--http, http.addr). It answers only on the machine\n" +
			"that it runs on.",
		Example: "  rewindmq deliveries --client dashboard-1\n  rewindmq deliveries --message 6929f3aa1c2d3e4f50617283 --output json",
		Args:    cobra.NoArgs,
		RunE: o.asking(func(cmd *cobra.Command, c *api.Client, _ []string) error {
			if client == "" && message == "" {
				return usage("of which client, or of which message? give --client or --message")
			}
			if _, err := schema.ParseID(message); message != "" && err != nil {
				return usage("--message %s: want the 24 hexadecimal digits of a message's id", message)
			}
			p := o.printer(cmd.OutOrStdout(), "CREATED", "CLIENT", "TOPIC", "QOS", "STATE", "MESSAGE", "NODE")
			err := c.EachDelivery(cmd.Context(), client, message, func(d api.Delivery) error {
				return p.print(d, d.Created.Format(time.RFC3339Nano), plain(d.Client), plain(d.Topic), strconv.Itoa(int(d.QoS)), d.State,
					d.Message, plain(d.Node))
			})
			return p.end(err)
		}),
	}
	o.add(cmd)
	cmd.Flags().StringVar(&client, "client", "", "`id` of the client")
	cmd.Flags().StringVar(&message, "message", "", "`id` of the message")
	return cmd
}
