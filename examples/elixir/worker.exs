# mix run --no-halt worker.exs [ENDPOINT]: handles df:uppercase and df:process_data.

endpoint = List.first(System.argv()) || "ws://127.0.0.1:8443/packetflow/v1"
{:ok, reactor} = PacketFlow.Reactor.start_link(endpoint: endpoint, reactor: "elixir-worker")

PacketFlow.Reactor.register(reactor, "df", "uppercase", &String.upcase/1)

PacketFlow.Reactor.register(reactor, "df", "process_data", fn data ->
  data["items"] |> Enum.map(&(&1 * 2)) |> Enum.sum()
end)

:ok = PacketFlow.Reactor.await(reactor)
IO.puts("connected to #{endpoint}")
