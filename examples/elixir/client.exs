# mix run client.exs [ENDPOINT]: submits to whoever handles df:uppercase, and shows a failure.

endpoint = List.first(System.argv()) || "ws://127.0.0.1:8443/packetflow/v1"
{:ok, reactor} = PacketFlow.Reactor.start_link(endpoint: endpoint)
:ok = PacketFlow.Reactor.await(reactor)

{:ok, text} = PacketFlow.Reactor.call(reactor, "df", "uppercase", "hello world", %{priority: 9})
IO.puts(text)

{:error, error} = PacketFlow.Reactor.call(reactor, "df", "nobody", nil, %{timeout_ms: 1_000})
IO.puts("#{error["code"]}: #{error["message"]}")
