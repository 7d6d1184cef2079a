defmodule PacketFlowPeer.Peer do
  @moduledoc """
  Driven by tests/interop over standard input and output, a JSON object a line:
  `mix run --no-halt -e "PacketFlowPeer.Peer.main()" -- ENDPOINT worker|client|doomed|conformance`.
  Commands carry a `tag`, which the answer to them has, too.
  """
  alias PacketFlowPeer.Reactor

  def main do
    [endpoint, role | _] = System.argv()
    :io.setopts(:standard_io, [:binary, encoding: :latin1])
    # what crashes is said there; standard output is for the test
    Logger.configure_backend(:console, device: :standard_error)
    Process.flag(:trap_exit, true)
    tap = spawn_link(fn -> watch(%{}) end)
    {:ok, _} = Reactor.start_link(endpoint: endpoint, tap: tap, by_hand: &by_hand/3)
    {:ok, counter} = Agent.start_link(fn -> 0 end)
    register(role, counter)
    commands(tap)
  end

  defp register("worker", counter) do
    for {element, fun} <- [
          echo: & &1,
          transform: &String.upcase/1,
          who: fn _ -> "elixir" end,
          fail: fn data -> raise to_string(data) end,
          throw: fn _ -> throw(:away) end,
          never: fn _ -> Process.sleep(:infinity) end,
          sleep: fn ms ->
            Process.sleep(ms)
            ms
          end,
          note: fn _ -> Agent.get_and_update(counter, &{&1 + 1, &1 + 1}) end
        ] do
      Reactor.register("df", element, fun)
    end
  end

  defp register("client", _counter), do: Reactor.register("df", "self.elixir", fn data -> %{self: data} end)

  defp register("doomed", _counter) do
    Reactor.register("df", "doomed.elixir", fn _ ->
      say(%{started: true})
      Process.sleep(:infinity)
    end)
  end

  defp register("conformance", _counter) do
    Reactor.register("df", "conformance.echo", & &1)
    Reactor.register("df", "conformance.fail", fn _ -> raise "on purpose" end)
    spawn(fn -> converse(nil) end)
  end

  defp converse("done"), do: :ok

  defp converse(told) do
    case Reactor.submit(%{"group" => "df", "element" => "conformance.next", "data" => told, "priority" => 5}) do
      %{"status" => "success", "data" => data} -> converse(data)
      %{"error" => %{"code" => code}} -> converse(code)
    end
  end

  # what a test wants to go wrong
  defp by_hand(%{"group" => "df", "element" => "crooked." <> how, "id" => id}, seq, put) do
    result = fn data -> %{packet_id: id, status: :success, data: data, error: nil, duration_ms: 0} end

    case how do
      "right" -> put.(:result, seq, result.("right"))
      "wrong" -> put.(:result, 987_654_321, result.("wrong seq"))
      "noid" -> put.(:result, seq, %{status: :success, data: "no id", duration_ms: 0})
      "twice" ->
        put.(:result, 0, result.("first"))
        put.(:result, 0, result.("second"))
      "beat" ->
        put.(:heartbeat, seq, %{timestamp: System.system_time(:millisecond)})
        put.(:result, 0, result.("after a heartbeat"))
    end

    true
  end

  defp by_hand(_packet, _seq, _put), do: false

  # tells of the connection, and whoever waits for a text that names an id
  defp watch(wanted) do
    receive do
      :ready ->
        say(%{ready: true})
        watch(wanted)

      :closed ->
        say(%{closed: true})
        watch(wanted)

      {:want, id, pid} ->
        watch(Map.put(wanted, id, pid))

      {:text, "{\"type\":\"submit\"" <> _} ->
        watch(wanted)

      {:text, text} ->
        {found, rest} = Enum.split_with(wanted, fn {id, _} -> String.contains?(text, "\"#{id}\"") end)
        for {_, pid} <- found, do: send(pid, {:found, text})
        watch(Map.new(rest))
    end
  end

  defp commands(tap) do
    case IO.binread(:stdio, :line) do
      line when is_binary(line) ->
        {:ok, command} = Jason.decode(line)
        spawn(fn -> say(Map.put(attempt(command, tap), :tag, command["tag"])) end)
        commands(tap)

      _ ->
        System.halt(0)
    end
  end

  defp attempt(command, tap) do
    run(command, tap)
  catch
    kind, reason -> %{rejected: inspect({kind, reason}, limit: 5, printable_limit: 200)}
  end

  defp run(%{"op" => "submit", "frame" => length, "packet" => packet}, _tap) do
    # data of the size that makes the whole frame this long
    blank = Jason.encode!(%{type: :submit, seq: 1, payload: Reactor.packet(Map.put(packet, "data", ""))})
    # the seq has as many digits as the present one
    data = String.duplicate("x", length - byte_size(blank) - digits() + 1)
    result = Reactor.submit(Map.put(packet, "data", data))
    %{result: Map.put(result, "data", result["data"] == data)}
  end

  defp run(%{"op" => "submit", "packet" => packet}, _tap), do: %{result: Reactor.submit(packet)}

  defp run(%{"op" => "flood", "packet" => packet, "count" => count, "outstanding" => outstanding}, _tap) do
    right =
      0..(count - 1)
      |> Task.async_stream(
        fn n ->
          result = Reactor.submit(Map.put(packet, "data", n))
          result["status"] == "success" and result["data"] == n
        end,
        max_concurrency: outstanding,
        ordered: false,
        timeout: 60_000
      )
      |> Enum.count(&(&1 == {:ok, true}))

    %{right: right}
  end

  defp run(%{"op" => "raw", "text" => text, "id" => id}, tap) do
    send(tap, {:want, id, self()})
    Reactor.write(text)

    receive do
      {:found, text} -> %{text: text}
    after
      30_000 -> %{rejected: "no message names #{id}"}
    end
  end

  defp run(%{"op" => "write", "text" => text}, _tap) do
    Reactor.write(text)
    %{}
  end

  defp run(%{"op" => "restart"}, _tap) do
    Reactor.restart()
    %{}
  end

  defp digits, do: Reactor |> :sys.get_state() |> Map.get(:sequence) |> Kernel.+(1) |> Integer.digits() |> length()

  defp say(line), do: IO.binwrite(:stdio, [Jason.encode!(line), ?\n])
end
