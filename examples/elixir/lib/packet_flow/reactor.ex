defmodule PacketFlow.Reactor do
  @moduledoc """
  A PacketFlow reactor: copy it and start from here. It announces its handlers,
  keeps to deadlines, answers with the submit's `seq`, and dials again.

      {:ok, reactor} = PacketFlow.Reactor.start_link(endpoint: "ws://127.0.0.1:8443/packetflow/v1")
      PacketFlow.Reactor.register(reactor, "df", "uppercase", &String.upcase/1)
      {:ok, "HELLO"} = PacketFlow.Reactor.call(reactor, "df", "uppercase", "hello")

  Options: `:endpoint`; `:reactor`, this reactor's id; `:window`, how many packets
  it takes at once (256); `:token`; `:name`, as for `GenServer.start_link/3`.
  """
  use GenServer
  require Logger

  @heartbeat_ms 30_000
  @timeout_ms 29_500
  @longest_delay_ms 5_000

  defstruct [:uri, :id, :window, :token, :conn, :stream, handlers: %{}, waiting: %{}, seq: 0, open: false, delay: 100]

  # -- for users

  def start_link(opts), do: GenServer.start_link(__MODULE__, opts, Keyword.take(opts, [:name]))

  @doc "Waits for the connection; :ok, or exits after `timeout` ms."
  def await(reactor, timeout \\ 5_000), do: GenServer.call(reactor, :await, timeout)

  @doc "`fun` is given the packet's data; what it returns is the answer, what it raises or throws is PF500."
  def register(reactor, group, element, fun) when is_function(fun, 1) do
    GenServer.call(reactor, {:register, "#{group}:#{element}", fun})
  end

  @doc """
  Submits a packet: a map with `:group` and `:element`, and what else a packet may
  have. `{:ok, result}` whatever its handler did, `{:error, error}` without an answer.
  """
  def submit(reactor, work) do
    packet = Map.merge(%{version: "1.0", id: uuid4(), data: nil, priority: 5}, work)
    # the gateway keeps the deadline; we give up a second later
    GenServer.call(reactor, {:submit, packet}, (packet[:timeout_ms] || @timeout_ms) + 1_000)
  end

  @doc "`{:ok, data}` or `{:error, %{\"code\" => ..., \"message\" => ...}}`."
  def call(reactor, group, element, data, more \\ %{}) do
    case submit(reactor, Map.merge(%{group: group, element: element, data: data}, more)) do
      {:ok, %{"status" => "success"} = result} -> {:ok, result["data"]}
      {:ok, %{"error" => error}} -> {:error, error}
      {:error, error} -> {:error, error}
    end
  end

  # -- the connection

  @impl true
  def init(opts) do
    uri = URI.parse(Keyword.fetch!(opts, :endpoint))
    state = %__MODULE__{uri: uri, id: opts[:reactor], window: opts[:window] || 256, token: opts[:token]}
    Process.send_after(self(), :heartbeat, @heartbeat_ms)
    {:ok, state, {:continue, :dial}}
  end

  @impl true
  def handle_continue(:dial, state), do: {:noreply, dial(state)}

  defp dial(state) do
    transport = if state.uri.scheme in ["wss", "packetflows"], do: :tls, else: :tcp
    opts = %{protocols: [:http], transport: transport, retry: 0}
    {:ok, conn} = :gun.open(to_charlist(state.uri.host), state.uri.port || 8443, opts)
    Process.monitor(conn)
    %{state | conn: conn, open: false}
  end

  @impl true
  def handle_call(:await, _from, %{open: true} = state), do: {:reply, :ok, state}
  def handle_call(:await, from, state), do: {:noreply, put_in(state.waiting[{:open, from}], from)}

  def handle_call({:register, key, fun}, _from, state) do
    state = put_in(state.handlers[key], fun)
    {:reply, :ok, if(state.open, do: heartbeat(state), else: state)}
  end

  def handle_call({:submit, _packet}, _from, %{open: false} = state) do
    {:reply, {:error, %{"code" => "PF502", "message" => "not connected"}}, state}
  end

  def handle_call({:submit, packet}, from, state) do
    state = send_message(state, :submit, packet)
    {:noreply, put_in(state.waiting[packet.id], {from, state.seq})}
  end

  @impl true
  def handle_info({:gun_up, conn, _protocol}, %{conn: conn} = state) do
    path = (state.uri.path || "/packetflow/v1") <> if(state.uri.query, do: "?" <> state.uri.query, else: "")
    headers = if state.token, do: [{"authorization", "Bearer " <> state.token}], else: []
    {:noreply, %{state | stream: :gun.ws_upgrade(conn, path, headers)}}
  end

  def handle_info({:gun_upgrade, conn, _stream, ["websocket"], _headers}, %{conn: conn} = state) do
    {waiting, rest} = Enum.split_with(state.waiting, &match?({{:open, _}, _}, &1))
    for {_, from} <- waiting, do: GenServer.reply(from, :ok)
    {:noreply, heartbeat(%{state | open: true, delay: 100, waiting: Map.new(rest)})}
  end

  def handle_info({:gun_response, conn, _stream, _fin, status, _headers}, %{conn: conn} = state) do
    {:stop, {:refused, status}, state}
  end

  def handle_info({:gun_ws, conn, _stream, {:text, text}}, %{conn: conn} = state) do
    case Jason.decode(text) do
      {:ok, %{"type" => type, "seq" => seq, "payload" => payload}} -> {:noreply, take(type, seq, payload, state)}
      _ -> {:noreply, state}
    end
  end

  def handle_info({:gun_down, conn, _, _, _}, %{conn: conn} = state), do: {:noreply, lost(state)}
  def handle_info({:gun_down, conn, _, _, _, _}, %{conn: conn} = state), do: {:noreply, lost(state)}
  def handle_info({:DOWN, _, :process, conn, _}, %{conn: conn} = state), do: {:noreply, lost(state)}
  def handle_info(:dial, state), do: {:noreply, dial(state)}
  def handle_info({:answer, conn, seq, payload}, %{conn: conn} = state), do: {:noreply, put(state, :result, seq, payload)}

  def handle_info(:heartbeat, state) do
    Process.send_after(self(), :heartbeat, @heartbeat_ms)
    {:noreply, if(state.open, do: heartbeat(state), else: state)}
  end

  def handle_info(_other, state), do: {:noreply, state}

  defp lost(state) do
    Logger.warning("connection lost; dialling again in #{state.delay} ms")
    :gun.close(state.conn)
    error = %{"code" => "PF502", "message" => "the connection was lost; the packet may have run or not"}
    for {_id, {from, seq}} <- state.waiting, is_integer(seq), do: GenServer.reply(from, {:error, error})
    Process.send_after(self(), :dial, state.delay)
    waiting = Map.filter(state.waiting, &match?({{:open, _}, _}, &1))
    %{state | conn: nil, open: false, waiting: waiting, delay: min(2 * state.delay, @longest_delay_ms)}
  end

  # -- messages

  defp take("submit", seq, packet, state) do
    {reactor, conn, fun} = {self(), state.conn, state.handlers["#{packet["group"]}:#{packet["element"]}"]}
    spawn(fn -> send(reactor, {:answer, conn, seq, run(fun, packet)}) end)
    state
  end

  defp take("result", _seq, result, state), do: resolve(state, result["packet_id"], {:ok, result})

  defp take("error", seq, error, state) do
    id = Enum.find_value(state.waiting, fn entry -> match?({_, {_, ^seq}}, entry) && elem(entry, 0) end)
    resolve(state, id, {:error, error})
  end

  defp take(_heartbeat, _seq, _payload, state), do: state

  defp resolve(state, id, answer) do
    {waiter, waiting} = Map.pop(state.waiting, id)
    with {from, _seq} <- waiter, do: GenServer.reply(from, answer)
    %{state | waiting: waiting}
  end

  defp run(fun, packet) do
    began = System.monotonic_time(:millisecond)
    outcome = outcome(fun, packet)
    Map.merge(outcome, %{packet_id: packet["id"], duration_ms: System.monotonic_time(:millisecond) - began})
  end

  defp outcome(nil, packet) do
    %{status: :error, error: %{code: "PF001", message: "no handler for #{packet["group"]}:#{packet["element"]}"}}
  end

  defp outcome(fun, packet) do
    %{status: :success, data: fun.(packet["data"])}
  rescue
    error -> %{status: :error, error: %{code: "PF500", message: Exception.message(error)}}
  catch
    # thrown and exited count, too: an answer that never comes costs its submitter the whole timeout
    kind, reason -> %{status: :error, error: %{code: "PF500", message: "#{kind}: #{inspect(reason)}"}}
  end

  defp heartbeat(state) do
    send_message(state, :heartbeat, %{
      timestamp: System.system_time(:millisecond),
      reactor: state.id,
      capabilities: Map.keys(state.handlers),
      window: state.window
    })
  end

  defp send_message(state, type, payload) do
    seq = state.seq + 1
    put(%{state | seq: seq}, type, seq, payload)
  end

  defp put(state, type, seq, payload) do
    frame = {:text, Jason.encode!(%{type: type, seq: seq, payload: payload})}
    Code.ensure_loaded(:gun)

    # gun 2 asks for the stream, gun 1 does not know it
    if function_exported?(:gun, :ws_send, 3),
      do: apply(:gun, :ws_send, [state.conn, state.stream, frame]),
      else: apply(:gun, :ws_send, [state.conn, frame])

    state
  end

  defp uuid4 do
    <<a::48, _::4, b::12, _::2, c::62>> = :crypto.strong_rand_bytes(16)
    hex = Base.encode16(<<a::48, 4::4, b::12, 2::2, c::62>>, case: :lower)
    <<p::binary-8, q::binary-4, r::binary-4, s::binary-4, t::binary-12>> = hex
    Enum.join([p, q, r, s, t], "-")
  end
end
