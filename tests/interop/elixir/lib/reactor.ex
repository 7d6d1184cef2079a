defmodule PacketFlowPeer.Reactor do
  @moduledoc """
  A reactor that says on the wire what the Elixir listing of the PacketFlow
  specification says, and no more: every field of a packet and a result is
  written, absent ones as null; results and PF001 carry `seq` 0; nothing is
  announced; a heartbeat's `seq` is that of the next submit; a handler that
  throws answers nothing; 30 seconds is the only timeout. For the tests of
  interoperability; a reactor to start a program from is in examples/elixir.

  `tap`, a pid, is told of texts and of the end of the connection; `by_hand`, a
  function of a packet, its seq and a function that sends, answers in place of
  the reactor where it returns true.
  """
  use GenServer

  @heartbeat_ms 30_000

  defstruct [:conn, :stream, :owner, :uri, :tap, :by_hand, handlers: %{}, waiting: %{}, sequence: 0]

  def start_link(opts), do: GenServer.start_link(__MODULE__, opts, name: __MODULE__)
  def register(group, element, fun), do: GenServer.call(__MODULE__, {:register, "#{group}:#{element}", fun})
  def submit(attrs), do: GenServer.call(__MODULE__, {:submit, attrs}, 30_000)
  def write(text), do: GenServer.call(__MODULE__, {:write, text})
  def restart, do: GenServer.call(__MODULE__, :restart)

  @impl true
  def init(opts) do
    state = %__MODULE__{uri: URI.parse(opts[:endpoint]), tap: opts[:tap], by_hand: opts[:by_hand]}
    {:ok, state, {:continue, :connect}}
  end

  @impl true
  def handle_continue(:connect, state) do
    Process.send_after(self(), :heartbeat, @heartbeat_ms)
    {:noreply, connect(state)}
  end

  @impl true
  def handle_call({:register, key, fun}, _from, state) do
    {:reply, :ok, put_in(state.handlers[key], fun)}
  end

  def handle_call({:submit, attrs}, from, state) do
    seq = state.sequence + 1
    send_message(state, :submit, seq, packet(attrs))
    {:noreply, %{state | sequence: seq, waiting: Map.put(state.waiting, seq, from)}}
  end

  def handle_call({:write, text}, _from, state) do
    send_text(state, text)
    {:reply, :ok, state}
  end

  def handle_call(:restart, _from, state) do
    :gun.close(state.conn)
    {:reply, :ok, connect(state)}
  end

  @impl true
  def handle_info({:gun_upgrade, _conn, _stream, ["websocket"], _headers}, state) do
    send(state.tap, :ready)
    {:noreply, state}
  end

  def handle_info({:gun_ws, conn, _stream, {:text, data}}, %{conn: conn} = state) do
    send(state.tap, {:text, data})

    case Jason.decode(data) do
      {:ok, %{"type" => type, "seq" => seq, "payload" => payload}} -> {:noreply, receive_message(type, seq, payload, state)}
      {:error, _} -> {:noreply, state}
    end
  end

  def handle_info({:gun_down, conn, _, _, _, _}, %{conn: conn} = state), do: down(state)
  def handle_info({:gun_down, conn, _, _, _}, %{conn: conn} = state), do: down(state)

  def handle_info(:heartbeat, state) do
    send_message(state, :heartbeat, state.sequence + 1, %{timestamp: System.system_time(:millisecond)})
    Process.send_after(self(), :heartbeat, @heartbeat_ms)
    {:noreply, state}
  end

  def handle_info({:send, text}, state) do
    send_text(state, text)
    {:noreply, state}
  end

  def handle_info(_other, state), do: {:noreply, state}

  defp down(state) do
    send(state.tap, :closed)
    {:noreply, state}
  end

  defp connect(state) do
    {:ok, conn} = :gun.open(to_charlist(state.uri.host), state.uri.port, %{protocols: [:http]})
    {:ok, _} = :gun.await_up(conn)
    path = if state.uri.query, do: "#{state.uri.path}?#{state.uri.query}", else: state.uri.path
    %{state | conn: conn, stream: :gun.ws_upgrade(conn, path)}
  end

  @doc "A packet as it goes out: all its fields, null where there is nothing."
  def packet(attrs) do
    %{
      version: "1.0",
      id: uuid4(),
      group: attrs["group"],
      element: attrs["element"],
      data: attrs["data"],
      priority: attrs["priority"],
      timeout_ms: attrs["timeout_ms"],
      dependencies: attrs["dependencies"],
      metadata: attrs["metadata"]
    }
  end

  defp receive_message("submit", seq, packet, state) do
    owner = self()
    spawn(fn -> process(packet, seq, Map.put(state, :owner, owner)) end)
    state
  end

  defp receive_message("result", seq, result, state), do: reply(seq, result, state)
  defp receive_message("error", seq, error, state), do: reply(seq, {:error, error}, state)
  defp receive_message("heartbeat", _seq, _payload, state), do: state

  defp reply(seq, answer, state) do
    {from, waiting} = Map.pop(state.waiting, seq)
    if from, do: GenServer.reply(from, answer)
    %{state | waiting: waiting}
  end

  defp process(packet, seq, state) do
    key = "#{packet["group"]}:#{packet["element"]}"
    put = fn type, at, payload -> send_message(state, type, at, payload) end

    unless state.by_hand && state.by_hand.(packet, seq, put) do
      case state.handlers[key] do
        nil -> answer(packet, :error, nil, %{code: "PF001", message: "No handler for #{key}"}, 0, state)
        fun -> run(fun, packet, state)
      end
    end
  end

  # as in the listing: `rescue` catches what was raised, not what was thrown
  defp run(fun, packet, state) do
    began = now()

    try do
      data = fun.(packet["data"])
      answer(packet, :success, data, nil, now() - began, state)
    rescue
      error -> answer(packet, :error, nil, %{code: "PF500", message: Exception.message(error)}, now() - began, state)
    end
  end

  defp answer(packet, status, data, error, duration_ms, state) do
    payload = %{packet_id: packet["id"], status: status, data: data, error: error, duration_ms: duration_ms}
    send_message(state, :result, 0, payload)
  end

  defp send_message(state, type, seq, payload) do
    text = Jason.encode!(%{type: type, seq: seq, payload: payload})
    # gun 1 takes frames from the connection's owner only
    if state.owner, do: send(state.owner, {:send, text}), else: send_text(state, text)
  end

  # gun 2 asks for the stream, gun 1 does not know it
  defp send_text(state, text) do
    Code.ensure_loaded(:gun)

    if function_exported?(:gun, :ws_send, 3),
      do: apply(:gun, :ws_send, [state.conn, state.stream, {:text, text}]),
      else: apply(:gun, :ws_send, [state.conn, {:text, text}])
  end

  defp now, do: System.monotonic_time(:millisecond)

  defp uuid4 do
    <<a::48, _::4, b::12, _::2, c::62>> = :crypto.strong_rand_bytes(16)
    hex = Base.encode16(<<a::48, 4::4, b::12, 2::2, c::62>>, case: :lower)
    <<p::binary-8, q::binary-4, r::binary-4, s::binary-4, t::binary-12>> = hex
    Enum.join([p, q, r, s, t], "-")
  end
end
