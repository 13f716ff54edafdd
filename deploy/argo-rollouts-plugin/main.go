// Command argo-rollouts-plugin runs as a traffic router plugin of the Argo Rollouts controller, which starts it.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/argoproj/argo-rollouts/rollout/trafficrouting/plugin/rpc"
	goplugin "github.com/hashicorp/go-plugin"
)

// What the controller and the plugin show each other. The values are Argo Rollouts'.
var handshake = goplugin.HandshakeConfig{
	ProtocolVersion:  1,
	MagicCookieKey:   "ARGO_ROLLOUTS_RPC_PLUGIN",
	MagicCookieValue: "trafficrouter",
}

func main() {
	gates := flag.String("gates", "http://weir.weir-system:15018", "the URL of weir's gates")
	wait := flag.Duration("wait", 2*time.Second, "how long weir may wait for a weight to become live before it says no")
	flag.Parse()
	plugin, err := newPlugin(*gates, *wait)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins: map[string]goplugin.Plugin{
			"RpcTrafficRouterPlugin": &rpc.RpcTrafficRouterPlugin{Impl: plugin},
		},
	})
}
