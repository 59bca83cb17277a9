package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/api"
)

func newRetained() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retained",
		Short: "List and remove the retained messages of the broker on this machine",
		Long: "Asks the broker at the address that the configuration gives (--http, http.addr). It answers only on the machine\n" +
			"that it runs on.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newRetainedList(), newRetainedRemove())
	return cmd
}

func newRetainedList() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "ls [FILTER]",
		Short: "List the retained messages whose topics match FILTER (default: #)",
		Args:  cobra.MaximumNArgs(1),
		RunE: o.asking(func(cmd *cobra.Command, c *api.Client, args []string) error {
			filter := "#"
			if len(args) == 1 {
				filter = args[0]
			}
			p := o.printer(cmd.OutOrStdout(), "TOPIC", "QOS", "BYTES", "CREATED", "CLIENT")
			err := c.EachRetained(cmd.Context(), filter, func(m api.Message) error {
				return p.print(m, plain(m.Topic), strconv.Itoa(int(m.QoS)), strconv.Itoa(m.Bytes), m.Created.Format(time.RFC3339), plain(m.Client))
			})
			return p.end(err)
		}),
	}
	o.add(cmd)
	return cmd
}

func newRetainedRemove() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "rm TOPIC",
		Short: "Remove the retained message of a topic",
		Long:  "Removes the retained message of a topic, as a client does with an empty one: subscribers get that.",
		Args:  cobra.ExactArgs(1),
		RunE: o.asking(func(cmd *cobra.Command, c *api.Client, args []string) error {
			if err := c.ClearRetained(cmd.Context(), args[0]); err != nil {
				return err
			}
			return o.done(cmd.OutOrStdout(), "removed", "topic", args[0])
		}),
	}
	o.add(cmd)
	return cmd
}
